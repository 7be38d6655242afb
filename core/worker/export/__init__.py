"""Processes that write exports, and that verify them."""
