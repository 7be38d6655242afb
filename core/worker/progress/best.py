"""Early stopping, the best checkpoint, and the newest one that is known to be good."""

from __future__ import annotations

import math
from typing import Any


class BestStep:
    """The best step by held-out loss, and the patience that is left.

    A checkpoint is good when its very weights have given a finite loss and a finite gradient: the loss of its step was
    computed before the update that it contains, and says nothing of that.

    Args:
        patience: Evaluations without improvement after which the run ends; None: never.
        min_delta: By how much the held-out loss must fall to count as an improvement.
    """

    def __init__(self, patience: int | None = None, min_delta: float = 0.0) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.last_good: int | None = None
        """Step of the newest good checkpoint."""
        self.waited = 0
        """Evaluations since the last improvement."""
        self.last_measured: int | None = None
        """Step of the last evaluation that was carried through."""
        self._reference = math.inf
        self._proven: int | None = None
        self._saved: int | None = None

    @property
    def is_exhausted(self) -> bool:
        """Whether the held-out loss has not improved for as many evaluations as there is patience."""
        return self.patience is not None and self.waited >= self.patience

    @property
    def protected(self) -> frozenset[int]:
        """Steps whose checkpoints outlive the rotation."""
        return frozenset(step for step in (self.best_step, self.last_good) if step is not None)

    def measured(self, step: int, loss: float, *, proves: bool = True) -> bool:
        """Take in an evaluation; the untouched model (step 0) is no candidate.

        Args:
            step: Of the weights.
            loss: The held-out loss.
            proves: Whether a finite one proves the weights good, as it does not while the training loss spikes.

        Returns:
            Whether it is the best one so far.
        """
        if self.last_measured is not None and step <= self.last_measured:
            return False  # a resumed run measures its last step again
        self.last_measured = step
        if step == 0:
            return False
        if proves and math.isfinite(loss):
            self.proved(step)
        if loss < self._reference - self.min_delta:
            self._reference, self.waited = loss, 0
        else:
            self.waited += 1
        if loss < self.best_loss:
            self.best_step, self.best_loss = step, loss
            return True
        return False

    def begin_anew(self) -> None:
        """What was measured before is compared with no more: other weights are measured from now on."""
        self.best_step, self.best_loss, self._reference, self.waited = None, math.inf, math.inf, 0

    def saved(self, step: int) -> None:
        """A checkpoint of a step has been written. An evaluation of its weights may have proved them already."""
        self._saved = step
        if step == self._proven:
            self.last_good = step

    def proved(self, step: int) -> None:
        """The weights after so many steps have given a finite loss and gradient."""
        self._proven = step
        if self._saved == step:
            self.last_good = step

    def facts(self) -> dict[str, Any]:
        """All of it as JSON, for a checkpoint."""
        return {
            "best": None if self.best_step is None else {"step": self.best_step, "loss": self.best_loss},
            "last_good": self.last_good,
            "proven": self._proven,
            "last_measured": self.last_measured,
            "waited": self.waited,
            "reference": self._reference if math.isfinite(self._reference) else None,
        }

    def restore(self, facts: dict[str, Any], step: int | None) -> None:
        """Put :meth:`facts` back.

        Args:
            facts: Of whatever moment.
            step: The checkpoint that the run goes on from; None for its beginning.
        """
        best = facts["best"]
        self.best_step, self.best_loss = (None, math.inf) if best is None else (int(best["step"]), float(best["loss"]))
        self.last_good, self.last_measured = facts["last_good"], facts["last_measured"]
        self.waited, self._proven = int(facts["waited"]), facts["proven"]
        self._reference = math.inf if facts["reference"] is None else float(facts["reference"])
        self._saved = None
        if step is not None:
            self.saved(step)
