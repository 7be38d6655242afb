"""Dataset references: files, hub datasets, and entries of other tools' registries."""
