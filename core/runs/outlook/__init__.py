"""Outlook on runs: the time left of a live one, and duration, energy and memory of one to come."""
