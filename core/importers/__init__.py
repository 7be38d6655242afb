"""Configurations of other tools, turned into ours: a table of keys for each tool, and a report on every key."""
