"""The Data pane: the rows of a dataset as list, conversation, tokens and report."""
