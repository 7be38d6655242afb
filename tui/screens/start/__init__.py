"""The start card: what a run is going to do, shown before it starts."""
