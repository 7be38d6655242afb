"""Processes of a run: starting, continuing and ending its worker, and starting its trackers."""
