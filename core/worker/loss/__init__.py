"""Losses and training objectives."""
