"""The checks of ``doctor``, one module per subject; every check returns its findings and raises nothing."""
