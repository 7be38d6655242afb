"""Run catalog: the list of runs, cheap to read repeatedly, as unchanged runs are cached."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.config.schema import WEIGHT_METHODS
from core.runs.events import StepEvent
from core.runs.history import last_step
from core.runs.state import StepProgress
from core.runs.store import Run, list_runs
from core.text import one_line

#: Greatest plausible value of an option.
_GREATEST = 1e9


@dataclass(frozen=True)
class RunRow:
    """Row of the list of runs.

    Args:
        run: The run.
        state: Its state, inferred if its process is gone.
        model: The base model's name and the method, for display; empty if the configuration cannot be read.
        step: Optimizer steps done.
        total_steps: Optimizer steps of the whole run; 0 while unknown.
        loss: Loss of the last step; None before the first one.
        started: Time of creation, in Unix seconds.
        seconds: Duration from start to end, or until now while it lives.
        reason: Reason for its state; may be empty.
        base: ``model.base`` of the run; None if the configuration cannot be read.
        updated: Time of the last state update, in Unix seconds; 0 if unknown.
        learning_rate: ``train.learning_rate``; None if the configuration cannot be read, as the next two.
        rank: ``method.rank``; None for a run that trains no adapter.
        batch_size: ``train.batch_size``.
        pending: Requests that wait for the end of its step.
        progress: Progress within its present step or evaluation; None between them.
    """

    run: Run
    state: str
    model: str
    step: int
    total_steps: int
    loss: float | None
    started: float
    seconds: float | None
    reason: str = ""
    base: str | None = None
    updated: float = 0.0
    learning_rate: float | None = None
    rank: int | None = None
    batch_size: int | None = None
    pending: tuple[str, ...] = ()
    progress: StepProgress | None = None
    refused: str = ""
    """What the result misses of ``eval.gate``."""


@dataclass(frozen=True)
class _Known:
    """Cached facts of a run, and the modification times of its files when they were read."""

    stamp: tuple[int, int]
    base: str | None
    model: str
    last: StepEvent | None
    learning_rate: float | None = None
    rank: int | None = None
    batch_size: int | None = None


_UNKNOWN = _Known((-1, -1), None, "", None)


class RunCatalog:
    """Reads all runs into rows; belongs to one thread."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._started: dict[str, float] = {}
        self._seconds_left = math.inf
        self.is_whole = True
        """Whether the last list had the facts of every run."""

    def rows(self, seconds: float = math.inf) -> list[RunRow]:
        """Rows of all runs as they are now, newest first.

        Args:
            seconds: Time for reading the facts of runs that are not known yet: model, loss and the like. Those that
                there is no time for are without them, until the next call.
        """
        runs = list_runs()
        self.is_whole, self._seconds_left = True, seconds
        found = [self.row(run) for run in runs]
        self._seconds_left = math.inf
        alive = {run.id for run in runs}
        self._known = {identity: known for identity, known in self._known.items() if identity in alive}
        return found

    def row(self, run: Run) -> RunRow:
        """Row of one run as it is now."""
        state = run.state()
        stamp = (_modified(run.config_path), _modified(run.events_path))
        known = self._known.get(run.id)
        if (known is None or known.stamp != stamp) and self._seconds_left <= 0:
            self.is_whole, known = False, known or _UNKNOWN
        elif known is None or known.stamp != stamp:
            begun = time.monotonic()
            if known is not None and known.stamp[0] == stamp[0]:
                known = replace(known, stamp=stamp, last=last_step(run))
            else:
                values = run.values()
                known = _Known(
                    stamp,
                    _base(values),
                    _label(values),
                    last_step(run),
                    _positive(values.get("train.learning_rate")),
                    _count(values.get("method.rank")) if values.get("method.name") not in WEIGHT_METHODS else None,
                    _count(values.get("train.batch_size")),
                )
            self._known[run.id] = known
            self._seconds_left -= time.monotonic() - begun
        started = self._started.get(run.id)
        if started is None:
            started = self._started[run.id] = started_at(run)
        last = known.last
        ended = time.time() if not state.is_over else max(state.updated, started)
        return RunRow(
            run=run,
            state=state.state,
            model=known.model,
            step=state.step or (last.step if last is not None else 0),
            total_steps=state.total_steps,
            loss=last.loss if last is not None else None,
            started=started,
            seconds=max(ended - started, 0.0),
            reason=state.reason,
            base=known.base,
            updated=state.updated,
            learning_rate=known.learning_rate,
            rank=known.rank,
            batch_size=known.batch_size,
            pending=state.pending if not state.is_over else (),
            progress=state.progress if not state.is_over else None,
            refused=state.refused,
        )


def _modified(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def started_at(run: Run) -> float:
    """Creation time of a run in Unix seconds: from its id, else from its directory."""
    return run.created.timestamp() if run.created is not None else _modified(run.path) / 1e9


def read_model(run: Run) -> str:
    """Base model's name and method of a run; empty if its configuration cannot be read."""
    return _label(run.values())


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < _GREATEST else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 31 else None


def _base(values: Mapping[str, Any]) -> str | None:
    base = values.get("model.base")
    return base if isinstance(base, str) else None


def _label(values: Mapping[str, Any]) -> str:
    base, kind, rank = _base(values), values.get("method.name"), values.get("method.rank")
    if base is None:
        return ""
    name = one_line(Path(base).name or base, 60).removesuffix(".gguf")
    is_known = isinstance(kind, str) and type(rank) is int and 0 < rank < 1 << 31
    return f"{name} · {one_line(str(kind), 20)} r{rank}" if is_known else name
