"""Checkpoints: written, verified, restored and rolled back to."""
