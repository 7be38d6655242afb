"""Training executed again from a checkpoint, and compared byte for byte with what was recorded."""
