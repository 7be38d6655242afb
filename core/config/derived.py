"""Values derived from a configuration: they follow from its options without being options."""

from __future__ import annotations

from core.config.choices import Objective
from core.config.schema import WEIGHT_METHODS, Config

#: Optimizers that keep their states in the dtype of the parameter; the others come from bitsandbytes.
FP32_STATES = frozenset({"adamw", "adafactor"})


def updates_in_backward(config: Config) -> bool:
    """Whether the optimizer step runs inside backward: by choice, and by default where a whole model is trained."""
    wanted = config.memory.optimizer_in_backward
    trains_weights = config.method.name in WEIGHT_METHODS
    return trains_weights and (wanted == "on" or (wanted == "auto" and config.method.name == "full"))


def sequences_per_row(objective: Objective) -> int:
    """Sequences that the model sees per row: both answers of a preference pair go through it together."""
    return 2 if objective in ("dpo", "orpo") else 1
