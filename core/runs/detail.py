"""Details of runs for their list: figures that take a look at every file, and an account of one run.

Unlike the rows of :mod:`core.runs.catalog` they are read for the runs in view only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.history import last_evaluation, read_history
from core.runs.removal import directory_size
from core.runs.series import Series
from core.runs.store import Run
from core.runs.working_time import working_seconds
from core.text import one_line
from core.units import exact_number

#: Times as long as it took to read a run it is left alone then.
_REST = 30.0


@dataclass(frozen=True)
class RunFigures:
    """Figures of a run.

    Args:
        size: Bytes on the disk.
        working_seconds: Time that its workers have spent on it, pauses left out; None if unknown.
        eval_loss: Loss of the last evaluation; None before one.
        exact_match: Share of exact answers in it; None where the dataset defines none.
    """

    size: int
    working_seconds: float | None
    eval_loss: float | None
    exact_match: float | None


@dataclass(frozen=True)
class Change:
    """An option whose value differs between two runs; the values as they are written, without directories."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class RunDetail:
    """An account of one run.

    Args:
        run: The run.
        loss: The loss by step.
        evals: Loss of the first and of the last evaluation; empty before one.
        exact_matches: Share of exact answers in them, likewise.
        reason: Why it ended, and what to do about it; may be empty.
        data: Names of the files it was trained on.
        before: The run that it is compared with; None for the first one.
        changes: Options that differ from that run's.
    """

    run: Run
    loss: Series
    evals: tuple[float, ...]
    exact_matches: tuple[float, ...]
    reason: str
    data: str
    before: Run | None
    changes: tuple[Change, ...]


class FigureReader:
    """Reads figures of runs, which are cached while their files stay as they are; belongs to one thread."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], float, RunFigures]] = {}

    @staticmethod
    def stamp(run: Run) -> tuple[int, ...]:
        """Times of the last changes of a run, which differ once it has to be read again."""
        return tuple(map(_modified, (run.path, run.events_path, run.checkpoints_path)))

    def read(self, run: Run) -> RunFigures:
        """The figures of a run as it is now."""
        stamp = self.stamp(run)
        known, now = self._known.get(run.id), time.monotonic()
        if known is None or (known[0] != stamp and now >= known[1]):
            figures = read_figures(run)
            known = self._known[run.id] = stamp, rest_after(now), figures
        return known[2]


def rest_after(begun: float) -> float:
    """The time from which a live run may be read again, by the monotonic clock: a long record is not read all the time.

    Args:
        begun: The time at which reading it has begun.
    """
    now = time.monotonic()
    return now + _REST * (now - begun)


def read_figures(run: Run) -> RunFigures:
    """The figures of a run; reads its whole event record once."""
    evaluated = last_evaluation(run)
    return RunFigures(
        size=directory_size(run.path),
        working_seconds=working_seconds(run.events_path),
        eval_loss=evaluated.loss if evaluated is not None else None,
        exact_match=evaluated.exact_match if evaluated is not None else None,
    )


def read_detail(run: Run, before: Run | None) -> RunDetail:
    """The account of a run, compared with another one."""
    history, state, values = read_history(run), run.state(), run.values()
    reason = history.end_reason(state)
    if state.refused:
        reason = f"{reason.rstrip('.')}. Refused by eval.gate: {state.refused}".lstrip(". ")
    # Of a run that has done all it should, it is the command that talks to it.
    is_wanted = state.is_over and state.state != "finished"
    hint = history.end.hint if history.end is not None and is_wanted else ""
    ends = [history.evals[0], history.evals[-1]] if history.evals else []
    matches = [event.exact_match for event in ends if event.exact_match is not None]
    return RunDetail(
        run=run,
        loss=history.loss,
        evals=tuple(event.loss for event in ends),
        exact_matches=tuple(matches),
        reason=" ".join(f"{text.rstrip('.')}." for text in (one_line(reason, 300), one_line(hint, 300)) if text),
        data=", ".join(_names(values.get("data.train"))[:4]),
        before=before,
        changes=tuple(_changes(before.values(), values)) if before is not None else (),
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    from core.config.compare import differences

    if not before or not after:
        return []
    return [
        Change(name, _shown(name, value), _shown(name, after.get(name)))
        for name, value in differences(after, before).items()
    ]


def _shown(name: str, value: Any) -> str:
    from core.config.explain import shown
    from core.config.schema import find_option

    if value is None and (option := find_option(name)) is not None:
        value = option.default
    if value is None:
        return "–"
    if name.startswith("data.") and (names := _names(value)):
        return ", ".join(names[:4])
    if type(value) is float:
        return exact_number(float(f"{value:.6g}"))
    # A path in full has no room; its end says which one it is.
    return Path(value).name or value if isinstance(value, str) and value.startswith("/") else shown(value).strip('"')


def _names(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [one_line(os.path.basename(item.rstrip("/")), 60) for item in values if isinstance(item, str)]


def _modified(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
