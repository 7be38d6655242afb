"""Runs: their directories, events and states, their worker processes and the control protocol."""
