"""Start card: a summary of a run before it starts."""
