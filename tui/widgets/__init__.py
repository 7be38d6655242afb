"""Widgets of the panes."""
