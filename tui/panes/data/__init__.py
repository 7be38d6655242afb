"""The Data pane."""
