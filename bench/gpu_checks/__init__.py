"""Checks of a card, for ``bench/gpu.py``."""
