"""Base models on this machine: where one is, and whether it can be loaded. Nothing heavy is imported."""
