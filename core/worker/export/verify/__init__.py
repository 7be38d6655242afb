"""The proof of an export: what was trained against what was written, each measured in a process of its own."""
