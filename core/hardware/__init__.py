"""What the machine is doing: GPUs and CPU as snapshots."""
