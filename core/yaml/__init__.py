"""YAML files of other tools, read within bounds and with the line of every key."""
