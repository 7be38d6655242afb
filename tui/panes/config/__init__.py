"""The Config pane."""
