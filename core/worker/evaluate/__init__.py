"""Evaluation on held-out rows, and sample answers."""
