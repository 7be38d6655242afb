"""The audit of a run: its hash chain checked, and intervals of its training executed again and compared."""
