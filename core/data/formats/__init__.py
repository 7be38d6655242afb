"""Rows become examples: the formats of rows, how one is recognized, and a mapping of columns."""
