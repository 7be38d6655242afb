"""Tiny random models of the families that people tune, each of its real configuration class."""
