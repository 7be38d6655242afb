"""Measurement of a model that is not loaded: parameters and activation memory, from its configuration alone."""
