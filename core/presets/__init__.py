"""Presets: parts of a configuration that fit a card and a size of model; the TOML files in this directory.

``[preset]`` says what one is for; the other sections hold options, and neither model nor data. ``extends`` names a
preset whose options hold where this one says nothing.
"""
