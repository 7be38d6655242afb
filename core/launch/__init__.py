"""Processes of a run: started, ended, and seen to."""
