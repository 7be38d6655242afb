"""The supported tools, each with a module or a few."""
