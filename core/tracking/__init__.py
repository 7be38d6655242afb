"""A run's figures, told to Weights & Biases, TensorBoard or trackio by processes beside the training."""
