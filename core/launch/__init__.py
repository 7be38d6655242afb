"""Processes of a run: start, continuation and end of its worker, and start of its trackers."""
