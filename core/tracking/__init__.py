"""A run's figures, told to Weights & Biases, TensorBoard or trackio by processes beside the training."""

from __future__ import annotations

from typing import Literal, get_args

#: A tracker; each is the package of its library, and an extra of this project.
Tracker = Literal["wandb", "tensorboard", "trackio"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)
