"""The screen that maps columns."""
