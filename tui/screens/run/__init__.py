"""The screen of everything about a run."""
