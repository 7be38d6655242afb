"""Schedule of a run: the steps after which it is evaluated and saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

#: Checkpoints in a run where checkpoint.every_steps says nothing.
DEFAULT_CHECKPOINTS = 10
#: A share is exact where an epoch is, and would otherwise be just below it.
_ROUNDING = 1e-9
_MOST = 1e15


def evaluations_by(
    step: int, every_steps: int | None, every_epochs: float | None, steps_per_epoch: float | None
) -> int:
    """How many evaluations are due by a step, that step included; the one before the first is left out.

    Args:
        step: The step.
        every_steps: ``eval.every_steps``, which goes first.
        every_epochs: ``eval.every_epochs``.
        steps_per_epoch: Optimizer steps in one pass over the rows; None where unknown.
    """
    if every_steps is not None:
        return step // every_steps
    if every_epochs is None or not steps_per_epoch:
        return 0
    return int(min(step / (every_epochs * steps_per_epoch), _MOST) + _ROUNDING)


def checkpoints_by(step: int, every_steps: int | None, total: int) -> int:
    """How many checkpoints are due by a step, that step included.

    Args:
        step: The step.
        every_steps: ``checkpoint.every_steps``.
        total: Steps of the whole run.
    """
    return step // (every_steps or max(math.ceil(total / DEFAULT_CHECKPOINTS), 1))


@dataclass(frozen=True)
class Schedule:
    """Evaluations and checkpoints of a run, by its configuration."""

    measures: bool = False
    """Whether rows are held out."""
    answers: bool = False
    """Whether they are answered as well (``eval.exact_match``)."""
    samples: int = 0
    """Sample answers at each evaluation besides."""
    prompts: bool = False
    """Whether these are to prompts of their own (``eval.prompts``), of whose answers nothing is known."""
    eval_steps: int | None = None
    eval_epochs: float | None = None
    checkpoint_steps: int | None = None
    for_file: bool = False
    """Whether the last steps train the weights of a file (``method.train_for``), which takes longer."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Schedule:
        """The schedule of a configuration.

        Args:
            values: ``section.key`` to value, unchecked, as in ``run.toml``; what is not there has its default.
        """
        from core.config.schema import EvalSection

        share = _number(values.get("data.eval_share"))
        measures = bool(values.get("data.eval")) or bool(share)
        answers = measures and values.get("eval.exact_match") is True
        samples = _count(values.get("eval.samples", EvalSection().samples)) or 0
        prompts = bool(values.get("eval.prompts"))
        return cls(
            measures=measures,
            answers=answers,
            prompts=prompts,
            samples=max(samples, 1) if prompts else samples if measures and not answers else 0,
            eval_steps=_count(values.get("eval.every_steps")),
            eval_epochs=_number(values.get("eval.every_epochs")),
            checkpoint_steps=_count(values.get("checkpoint.every_steps")),
            for_file=values.get("method.train_for") is not None,
        )

    def changed(self, settings: Mapping[str, Any]) -> Schedule:
        """The schedule with what was set while the run was on."""
        found = self
        if "eval.every_steps" in settings:
            found = replace(found, eval_steps=_count(settings["eval.every_steps"]), eval_epochs=None)
        if "checkpoint.every_steps" in settings:
            found = replace(found, checkpoint_steps=_count(settings["checkpoint.every_steps"]))
        return found

    def steps_left(self, step: int, total: int) -> float:
        """Steps to come, by the time that one takes now."""
        from core.config.derived import FILE_SLOWNESS, steps_before_file

        left = max(total - step, 0)
        if not self.for_file or step > (before := steps_before_file(total)):
            return float(left)
        return left + (FILE_SLOWNESS - 1) * min(left, total - before)

    @property
    def evaluates(self) -> bool:
        """Whether there are evaluations at all."""
        return self.measures or self.samples > 0

    def evaluations_by(self, step: int, steps_per_epoch: float | None) -> int:
        """How many evaluations are due by a step, that step included; the one before the first is left out."""
        if not self.evaluates:
            return 0
        return evaluations_by(step, self.eval_steps, self.eval_epochs, steps_per_epoch)

    def checkpoints_by(self, step: int, total: int) -> int:
        """How many checkpoints are due by a step, that step included."""
        return checkpoints_by(step, self.checkpoint_steps, total)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 62 else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared as it is: a whole number may be larger than any float.
    return float(value) if 0 < value < _MOST else None
