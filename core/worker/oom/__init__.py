"""Handling of running out of memory."""
