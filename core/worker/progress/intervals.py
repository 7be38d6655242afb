"""Evaluation and checkpoint intervals: the configured ones, or those that were set while running."""

from __future__ import annotations

from dataclasses import dataclass

from core.config.schema import Config
from core.runs.outlook.time_left import checkpoints_by, evaluations_by
from core.worker.progress.state import TrainState


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
        now, before = (evaluations_by(at, every, config.every_epochs, self.steps_per_epoch) for at in (step, step - 1))
        return now > before

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether a checkpoint is due."""
        step, total = self.state.step, self.state.total_steps
        every: int | None = self.state.overrides.get("checkpoint.every_steps", self.config.checkpoint.every_steps)
        return checkpoints_by(step, every, total) > checkpoints_by(step - 1, every, total)
