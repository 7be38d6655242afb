"""Processes that write exports."""
