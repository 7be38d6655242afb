"""Optimizers, the learning rate schedule, and the update of the weights."""
