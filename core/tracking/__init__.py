"""Experiment trackers: a run's metrics sent to Weights & Biases, TensorBoard or trackio by separate processes."""
