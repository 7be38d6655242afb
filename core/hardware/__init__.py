"""Hardware: GPUs and CPU, read as snapshots."""
