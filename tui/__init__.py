"""The terminal app and the command line that opens it."""
