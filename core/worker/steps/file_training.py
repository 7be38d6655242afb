"""The last part of a run that trains the weights of a file (``method.train_for``), and its beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from core.config.derived import steps_before_file
from core.worker.fused.file_weights import FileWeights
from core.worker.progress.state import TrainState


@dataclass(frozen=True)
class FileTraining:
    """Switches a model to the weights of its file where the last part of a run begins.

    Until then, and after the last step before it, the model computes as always: that step's evaluation and checkpoint
    are of its own weights.

    Args:
        weights: Of the model in training.
        state: Of the training; says whether they are in use.
        dtype: Of the arithmetic.
        keeps: Whether merged copies are kept.
        notice: Told of the beginning: ``notice(level, code, message, hint)``.
    """

    weights: FileWeights
    state: TrainState
    dtype: torch.dtype
    keeps: bool
    notice: Callable[[str, str, str, str], None]

    @property
    def before(self) -> int:
        """Steps that are done before."""
        return steps_before_file(self.state.total_steps)

    def follow(self) -> None:
        """Go where the state is, after it was restored."""
        self._use(self.state.step > self.before)

    def begin_step(self) -> None:
        """The next step is about to be done."""
        state = self.state
        if state.step < self.before or self.weights.in_use:
            return
        self._use(True)
        if state.step == self.before:
            state.best.begin_anew()
            state.spikes.begin_anew()
            self.notice(
                "info",
                "file_weights",
                f"From step {state.step + 1} on the weights of a {self.weights.kind} file are trained and measured; "
                "the best step is looked for anew.",
                "These steps take longer.",
            )

    def updated(self) -> None:
        """The adapters have changed."""
        self.weights.changed()

    def _use(self, in_use: bool) -> None:
        self.weights.use(in_use, self.dtype if self.keeps else None)
        self.weights.changed()
        name = str(self.dtype).removeprefix("torch.")
        self.state.file = {"type": self.weights.kind, "dtype": name} if in_use else None
