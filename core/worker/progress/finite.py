"""Finite checks: a step whose loss or gradient is not finite is skipped, and its rows are named."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from core.analysis.file_lines import FileLine, name_places
from core.errors import UserError

#: Updates in a row that are skipped for a loss or gradient that is not finite, before a run gives up.
NONFINITE_LIMIT = 5


class NotFiniteError(UserError):
    """A run that gave up because its losses or gradients were no numbers any more; ``good`` is the step of its newest
    good checkpoint, if there is one."""

    def __init__(self, message: str, hint: str, good: int | None) -> None:
        super().__init__(message, hint)
        self.good = good


class FiniteCheck:
    """Looks at the loss and the gradient of each step.

    Args:
        notice: Told what is wrong: ``notice(code, message, hint)``.
        places: Where the training rows come from, by their index.
    """

    def __init__(self, notice: Callable[[str, str, str], None], places: Sequence[FileLine]) -> None:
        self._notice = notice
        self._places = places
        self.skipped = 0
        """Updates that were skipped so far, because something was not finite."""
        self._streak = 0
        self._zero_told = False
        self._where = ""

    @property
    def is_hopeless(self) -> bool:
        """Whether :data:`NONFINITE_LIMIT` updates in a row were skipped."""
        return self._streak >= NONFINITE_LIMIT

    def accepts(self, step: int, loss: float, norm: float, window: Sequence[int], *, overflow: bool = False) -> bool:
        """Whether the update of a step may be made.

        Args:
            step: The step under way, counted from 1.
            loss: Its mean loss.
            norm: The norm of its gradient, before clipping.
            window: Indices of its rows.
            overflow: Whether a gradient that is not finite comes of the scale of fp16 and is mended by a smaller one;
                it does not count then.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self._streak = 0
            if norm == 0 and not self._zero_told:
                self._zero_told = True
                self._tell_zero(step, loss)
            return True
        if overflow and math.isfinite(loss):
            return False
        self._streak += 1
        self.skipped += 1
        self._where = f"step {step}, {self._name(window)}"
        what = "gradient" if math.isfinite(loss) else "loss"
        self._notice(
            "nonfinite",
            f"The {what} of step {step} is not finite (loss {loss:g}, gradient {norm:g}); the update is skipped "
            f"({self._streak} in a row). Its rows: {self._name(window)}.",
            f"After {NONFINITE_LIMIT} in a row the run ends at its last good checkpoint.",
        )
        return False

    def verdict(self, good: int | None) -> NotFiniteError:
        """The error that ends a hopeless run.

        Args:
            good: The step of its newest good checkpoint.
        """
        kept = f"the last good checkpoint is that of step {good}" if good else "no checkpoint is known to be good"
        return NotFiniteError(
            f"Loss or gradient have not been finite for {NONFINITE_LIMIT} steps, up to {self._where}; {kept}.",
            "Look at these rows; if they are sound, lower train.learning_rate, set train.max_grad_norm, or set "
            "train.precision to bf16 or fp32, and start anew.",
            good,
        )

    def facts(self) -> dict[str, Any]:
        """All of it as JSON, for a checkpoint."""
        return {"skipped": self.skipped, "streak": self._streak, "zero_told": self._zero_told}

    def restore(self, facts: dict[str, Any]) -> None:
        """Put :meth:`facts` back."""
        self.skipped, self._streak = int(facts["skipped"]), int(facts["streak"])
        self._zero_told = bool(facts["zero_told"])

    def _tell_zero(self, step: int, loss: float) -> None:
        if loss == 0:
            message = f"Loss and gradient of step {step} are zero: nothing is learned from its rows."
            hint = "Look at what is learned of them with 'localtune-tui data', and at data.supervise."
        else:
            message = f"The gradient of step {step} is zero although its loss is {loss:.3g}: nothing is trained by it."
            hint = "Look at method.target_modules: the layers named there may not be what the model computes with."
        self._notice("zero_gradient", message, hint)

    def _name(self, window: Sequence[int]) -> str:
        # Rows that were made in memory, as tests do, come from nowhere.
        return name_places([self._places[row] for row in window if row < len(self._places)])
