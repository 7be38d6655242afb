"""Values derived from a configuration: they follow from its options without being options."""

from __future__ import annotations

import math

from core.config.choices import Objective
from core.config.schema import WEIGHT_METHODS, Config

#: Optimizers that keep their states in the dtype of the parameter; the others come from bitsandbytes.
FP32_STATES = frozenset({"adamw", "adafactor"})


def updates_in_backward(config: Config) -> bool:
    """Whether the optimizer step runs inside backward: by choice, and by default where a whole model is trained."""
    wanted = config.memory.optimizer_in_backward
    trains_weights = config.method.name in WEIGHT_METHODS
    return trains_weights and (wanted == "on" or (wanted == "auto" and config.method.name == "full"))


def step_count(config: Config, rows: int | None) -> int | None:
    """Number of optimizer steps of a run; None if it depends on the rows and their number is unknown.

    Args:
        config: Configuration of the run.
        rows: Number of rows trained on; None if unknown.
    """
    train = config.train
    if train.max_steps is not None:
        return train.max_steps
    return math.ceil(train.epochs * math.ceil(rows / train.batch_size)) if rows else None


def sequences_per_row(objective: Objective) -> int:
    """Sequences that the model sees per row: both answers of a preference pair go through it together."""
    return 2 if objective in ("dpo", "orpo") else 1
