"""Presets: partial configurations that fit a card and a model size; the TOML files in this directory.

``[preset]`` describes the preset; the other sections hold options, but neither model nor data. ``extends`` names a
preset whose options apply where this one has none.
"""
