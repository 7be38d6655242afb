"""Replay of training from a checkpoint, compared byte for byte with the record."""
