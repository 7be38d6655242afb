"""Inputs and forms."""
