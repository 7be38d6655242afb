"""Exports: the result of a run as files that other programs read, proven against the model that was trained."""
