"""Record of a run: its directory, state, events, and their history."""
