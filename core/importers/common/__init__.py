"""Options that several tools share, carried over alike."""
