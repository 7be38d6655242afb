"""Inputs, the ask bar, and the form of the options."""
