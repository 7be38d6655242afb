"""Datasets as panes and screens see them, without any widget."""
