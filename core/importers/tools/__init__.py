"""Configurations of other tools, one module or a few for each."""
