"""Record of a run: its directory, state and events, and the history that they add up to."""
