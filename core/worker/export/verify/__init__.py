"""Verification of an export: the trained model against the written files, each measured in a separate process."""
