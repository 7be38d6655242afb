"""Evaluation and checkpoint intervals: the configured ones, or those that were set while running."""

from __future__ import annotations

import math

from core.config.schema import Config
from core.worker.progress.state import TrainState

#: Checkpoints in a run when checkpoint.every_steps says nothing.
DEFAULT_CHECKPOINTS = 10
_ROUNDING = 1e-9


class Intervals:
    """Says of the step just done whether an evaluation or a checkpoint is due.

    Args:
        config: The intervals at the start of the run.
        state: The step, and the intervals that were set since.
        steps_per_epoch: Optimizer steps in one pass over the rows.
    """

    def __init__(self, config: Config, state: TrainState, steps_per_epoch: int) -> None:
        self._config = config
        self._state = state
        self._steps_per_epoch = steps_per_epoch

    @property
    def is_evaluation_due(self) -> bool:
        """Whether an evaluation is due; an interval that was set counts in steps."""
        step, config = self._state.step, self._config.eval
        every: int | None = self._state.overrides.get("eval.every_steps", config.every_steps)
        if every is not None:
            return step % every == 0
        if config.every_epochs is None:
            return False
        interval = config.every_epochs * self._steps_per_epoch
        # The share is exact where an epoch is, and would otherwise be just below it.
        return int(step / interval + _ROUNDING) > int((step - 1) / interval + _ROUNDING)

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether a checkpoint is due."""
        every = self._state.overrides.get("checkpoint.every_steps", self._config.checkpoint.every_steps)
        return self._state.step % int(every or math.ceil(self._state.total_steps / DEFAULT_CHECKPOINTS)) == 0
