"""YAML files of other tools, read in the sandbox, with the line of every key."""
