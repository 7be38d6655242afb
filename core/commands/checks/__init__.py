"""What ``doctor`` looks at, a subject a file; every check returns its findings and raises nothing."""
