"""Everything of localtune-tui that is not the screen: configuration, data, runs, hardware and the training worker."""

__version__ = "0.1.0"
