"""Evaluation and checkpoint intervals: the configured ones, or those that were set while running."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.config.schema import Config
from core.worker.progress.state import TrainState

#: Checkpoints in a run when checkpoint.every_steps says nothing.
DEFAULT_CHECKPOINTS = 10
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Intervals:
    """Says of the step just done whether an evaluation or a checkpoint is due.

    Args:
        config: The intervals at the start of the run.
        state: The step, and the intervals that were set since.
        steps_per_epoch: Optimizer steps in one pass over the rows.
    """

    config: Config
    state: TrainState
    steps_per_epoch: int

    @property
    def is_evaluation_due(self) -> bool:
        """Whether an evaluation is due; an interval that was set counts in steps."""
        step, config = self.state.step, self.config.eval
        every: int | None = self.state.overrides.get("eval.every_steps", config.every_steps)
        if every is not None:
            return step % every == 0
        if config.every_epochs is None:
            return False
        interval = config.every_epochs * self.steps_per_epoch
        # The share is exact where an epoch is, and would otherwise be just below it.
        return int(step / interval + _ROUNDING) > int((step - 1) / interval + _ROUNDING)

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether a checkpoint is due."""
        every = self.state.overrides.get("checkpoint.every_steps", self.config.checkpoint.every_steps)
        return self.state.step % int(every or math.ceil(self.state.total_steps / DEFAULT_CHECKPOINTS)) == 0
