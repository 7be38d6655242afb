"""Values derived from a configuration: they follow from its options without being options."""

from __future__ import annotations

import math

from core.config.choices import Objective
from core.config.schema import WEIGHT_METHODS, Config

#: Optimizers that keep their states in the dtype of the parameter; the others come from bitsandbytes.
FP32_STATES = frozenset({"adamw", "adafactor"})
#: What ``distributed.gpus`` says for every visible card.
ALL_GPUS = "all"
#: Share of the steps, the last ones, that train the weights of a file (``method.train_for``), and how much longer than
#: others they take; see docs/performance.md.
FILE_SHARE, FILE_SLOWNESS = 1 / 3, 1.8


def holds_out(config: Config) -> bool:
    """Whether there are held-out rows."""
    return config.data.eval is not None or config.data.eval_share > 0


def wants_several(config: Config) -> bool:
    """Whether a configuration asks for more than one process; ``distributed.gpus = "all"`` may come to one."""
    distributed = config.distributed
    named = distributed.named_gpus
    here = len(named) > 1 or ALL_GPUS in named if distributed.processes is None else distributed.processes > 1
    return here or bool(distributed.other_hosts)


def updates_in_backward(config: Config) -> bool:
    """Whether the optimizer step runs inside backward: by choice, and by default where a whole model is trained by one
    process; the gradients of several are added up before."""
    wanted = config.memory.optimizer_in_backward
    if config.method.name not in WEIGHT_METHODS:
        return False
    return wanted == "on" or (wanted == "auto" and config.method.name == "full" and not wants_several(config))


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


def steps_before_file(total: int) -> int:
    """Optimizer steps that are done before those that train the weights of a file (``method.train_for``).

    Args:
        total: Steps of the whole run.
    """
    return total - max(1, round(total * FILE_SHARE))


def usual_steps(config: Config, steps: int) -> float:
    """Optimizer steps by the time that they take: those for a file count more.

    Args:
        config: Configuration of the run.
        steps: Steps of the whole run.
    """
    if config.method.train_for is None or not steps:
        return float(steps)
    before = steps_before_file(steps)
    return before + FILE_SLOWNESS * (steps - before)


def sequences_per_row(objective: Objective) -> int:
    """Sequences that the model sees per row: both answers of a preference pair go through it together."""
    return 2 if objective in ("dpo", "orpo") else 1
