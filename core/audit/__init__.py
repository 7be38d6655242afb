"""Audit of a run: its hash chain is checked, and intervals of its training are executed again and compared."""
