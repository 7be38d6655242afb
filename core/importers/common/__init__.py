"""Rules for options that several tools share."""
