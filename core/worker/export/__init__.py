"""Processes that write exports, and that prove them."""
