"""The Chat pane: its widgets, the session on the model, and the turns in threads."""
