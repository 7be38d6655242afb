"""Other machines of a run: compared before the start, and their ranks started and ended over ssh."""
