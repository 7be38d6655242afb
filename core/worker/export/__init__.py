"""The process of an export: it merges, converts and compares, and puts into place only what is whole and right."""
