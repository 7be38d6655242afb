"""Learning rate schedule: a pure function of the step, as the schedules of transformers define it."""

from __future__ import annotations

import math

from core.config.schema import TrainSection
from core.worker.progress.state import TrainState


class LearningRate:
    """The learning rate of the next step: the peak in force, times the schedule's share of it.

    Args:
        train: Peak, schedule and warm-up.
        state: The step, and a peak that was set while running.
    """

    def __init__(self, train: TrainSection, state: TrainState) -> None:
        self._train = train
        self._state = state
        self._warmup = warmup_steps(train.warmup, state.total_steps)

    def __call__(self) -> float:
        """The rate of the step after those that are done."""
        peak = float(self._state.overrides.get("train.learning_rate", self._train.learning_rate))
        return peak * lr_factor(self._train.scheduler, self._state.step, self._warmup, self._state.total_steps)


def warmup_steps(warmup: float, total_steps: int) -> int:
    """``train.warmup`` in steps: a share of all steps below 1 (rounded up), a number of steps from 1."""
    return math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)


def lr_factor(scheduler: str, step: int, warmup: int, total_steps: int) -> float:
    """The share of the peak learning rate that optimizer step ``step`` (from 0) uses.

    Args:
        scheduler: ``cosine``, ``linear`` or ``constant``.
        step: The step.
        warmup: Steps of linear warm-up from 0.
        total_steps: Steps of the whole run.
    """
    if step < warmup:
        return step / max(1, warmup)
    if scheduler == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    if scheduler == "linear":
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
