"""Setup of a run: rows and model made ready, memory decided, fast paths chosen and checked."""
