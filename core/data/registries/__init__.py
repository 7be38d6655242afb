"""Entries of datasets: files, hub datasets, and the registries of other tools."""
