"""Course of a run: what its steps have come to since this start, and what is left of it."""

from __future__ import annotations

from core.governor.curve import Curve
from core.governor.pace import Pace


class Course:
    """Course of one run, measured from its second step on, as the first one warms up."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.steps_left = 0
        """Optimizer steps to come; 0 before the first one is done."""
        self._tokens = self._steps = 0
        self._step_seconds = self._between_seconds = 0.0

    def step_done(
        self, *, tokens: int, seconds: float, duty: float, joules: float | None, between: float, steps_left: int
    ) -> None:
        """Take an optimizer step in.

        Args:
            tokens: Trained in it.
            seconds: It took, rests included.
            duty: The share of them that was worked.
            joules: Used in it; None where the device does not tell.
            between: Seconds between it and the step before, pauses left out.
            steps_left: Optimizer steps to come.
        """
        self._steps += 1
        self.steps_left = steps_left
        if self._steps == 1:
            return
        self._tokens += tokens
        self._step_seconds += seconds
        self._between_seconds += between
        self.pace.add(duty, tokens, seconds, joules)

    @property
    def tokens_left(self) -> float:
        """What is left to train, in tokens; evaluations and checkpoints go on as they did so far, and count as such."""
        left = self.steps_left * self._tokens / max(self._steps - 1, 1)
        return left * (1.0 + self._between_seconds / max(self._step_seconds, 1e-9))

    @property
    def trial(self) -> float | None:
        """The duty cycle that is to be tried now; None for none."""
        return self.pace.trial if self.steps_left else None

    @property
    def curve(self) -> Curve | None:
        """Speed and power of what is left; None before they are measured, and where nothing is left to plan for."""
        return self.pace.curve if self.steps_left else None

    @property
    def known(self) -> Curve | None:
        """The best that is known of what is left: the curve, else the speed of full work; None before that."""
        if not self.steps_left:
            return None
        return self.pace.curve or self.pace.full_work
