"""Results of a sweep: the figures of each variant, with the best marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.queue.entry import QueueEntry
from core.queue.fate import run_of
from core.runs.record.history import RunHistory, read_history


@dataclass(frozen=True)
class SweepRow:
    """A variant and its figures; None for unknown ones."""

    entry: int
    state: str
    """State of the entry, or of its run once that has ended: finished, stopped, failed, lost."""
    run: str | None
    values: Mapping[str, Any]
    best_eval_loss: float | None = None
    best_step: int | None = None
    """Step of that evaluation."""
    loss: float | None = None
    """Training loss of the last step."""
    tokens_per_second: float | None = None
    energy_wh: float | None = None
    seconds: float | None = None
    """Seconds of work, without pauses."""
    is_best: bool = False
    """True for the lowest held-out loss of the sweep."""

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON."""
        return {
            "entry": self.entry,
            "state": self.state,
            "run": self.run,
            "values": dict(self.values),
            "best_eval_loss": self.best_eval_loss,
            "best_step": self.best_step,
            "loss": self.loss,
            "tokens_per_second": self.tokens_per_second,
            "energy_wh": self.energy_wh,
            "seconds": self.seconds,
            "best": self.is_best,
        }


def sweep_rows(entries: Sequence[QueueEntry]) -> list[SweepRow]:
    """The rows of a sweep's entries; reads the records of their runs.

    The best has the lowest held-out loss. Without held-out rows none is marked: a training loss says little about
    quality.
    """
    rows = [_row(entry) for entry in entries]
    measured = [row.best_eval_loss for row in rows if row.best_eval_loss is not None]
    best = min(measured, default=None)
    return [replace(row, is_best=best is not None and row.best_eval_loss == best) for row in rows]


def _row(entry: QueueEntry) -> SweepRow:
    row = SweepRow(entry.id, entry.outcome or entry.state, entry.run, entry.values)
    if entry.run is None or not (run := run_of(entry)).events_path.exists():
        return row
    history = read_history(run)
    best_loss, best_step = _best(history)
    last = history.last_step
    return replace(
        row,
        best_eval_loss=best_loss,
        best_step=best_step,
        loss=last.loss if last is not None else None,
        tokens_per_second=history.tokens_per_second,
        energy_wh=history.energy_wh,
        seconds=history.working_seconds,
    )


def _best(history: RunHistory) -> tuple[float | None, int | None]:
    """The lowest held-out loss and its step; the untouched model does not count."""
    found = [event for event in history.evals if event.step > 0 and math.isfinite(event.loss)]
    best = min(found, key=lambda event: event.loss, default=None)
    return (None, None) if best is None else (best.loss, best.step)
