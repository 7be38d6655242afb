"""Figures of runs for their list: what takes a look at the whole event record, or at every file.

They are read in one pass in which little is decoded, and those of ended runs are kept in the home.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.events import (
    LINE_LIMIT,
    EvalEvent,
    Event,
    HardwareEvent,
    MalformedEventError,
    StepEvent,
    decode_event,
    decode_step,
)
from core.runs.lines import read_lines
from core.runs.removal import directory_size
from core.runs.store import Run
from core.runs.summary_cache import SummaryCache
from core.runs.totals import StepTotals
from core.runs.working_time import WorkingTime
from core.small_files import open_regular

#: Times as long as it took to read a run it is left alone then.
_REST = 30.0
#: Seconds between two writes of the file with the figures that are known.
_SAVE_SECONDS = 5.0
_NUMBER = rb"(\d{1,16}(?:\.\d*)?(?:[eE][+-]?\d{1,2})?)"
#: A report of the devices as it is written, of which the time and the energy count.
_HARDWARE_LINE = re.compile(
    rb'\{"t": ' + _NUMBER + rb', "type": "hardware".*"energy_wh": (?:null|' + _NUMBER + rb")[,}]"
)


@dataclass(frozen=True, kw_only=True)
class RecordFigures:
    """Figures of a run by its event record; None for what is unknown.

    Args:
        working_seconds: Time that its workers have spent on it, pauses left out.
        tokens: Tokens trained on, without padding and replayed steps.
        tokens_per_second: These over the seconds of its steps.
        energy_wh: Energy of its devices over all starts.
        eval_loss: Loss of the last evaluation.
        exact_match: Share of exact answers in it; None where the dataset defines none.
        best_loss: Least loss of an evaluation.
        best_step: The step of that evaluation.
    """

    working_seconds: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    energy_wh: float | None = None
    eval_loss: float | None = None
    exact_match: float | None = None
    best_loss: float | None = None
    best_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunFigures(RecordFigures):
    """Figures of a run.

    Args:
        size: Bytes on the disk.
    """

    size: int


class _Record:
    """The figures of a record, line by line."""

    def __init__(self) -> None:
        self._working = WorkingTime()
        self._totals = StepTotals()
        self._evals: list[EvalEvent] = []
        self._energy: float | None = None
        self._energy_before = 0.0
        self._starts = 0

    def apply_line(self, line: bytes) -> None:
        """Apply a line, if it is an event."""
        if (step := decode_step(line)) is not None:
            self._apply_step(step)
        elif (found := _HARDWARE_LINE.match(line)) is not None:
            self._working.advance(float(found[1]))
            self._apply_energy(None if found[2] is None else float(found[2]))
        else:
            try:
                event = decode_event(line)
            except MalformedEventError:
                return
            if event is not None:
                self._apply(event)

    def _apply(self, event: Event) -> None:
        if isinstance(event, StepEvent):
            self._apply_step(event)
            return
        self._working.apply(event)
        if isinstance(event, HardwareEvent):
            self._apply_energy(event.energy_wh)
        elif isinstance(event, EvalEvent):
            self._rewind(event.step)
            self._evals.append(event)

    def _apply_step(self, event: StepEvent) -> None:
        self._working.advance(event.t)
        self._working.settle(event.paused_seconds)
        if self._totals.steps and event.step <= self._totals.steps[-1]:
            self._totals.truncate(event.step)
            self._rewind(event.step)
        self._totals.append(event.step, event.tokens, event.seconds, event.paused_seconds)

    def _rewind(self, step: int) -> None:
        """Forget the evaluations from a step on."""
        while self._evals and self._evals[-1].step >= step:
            self._evals.pop()

    def _apply_energy(self, energy: float | None) -> None:
        if self._working.starts != self._starts:
            # A worker counts its own energy.
            self._starts, self._energy_before = self._working.starts, self._energy or 0.0
        if energy is not None and math.isfinite(energy):
            self._energy = self._energy_before + energy

    def figures(self) -> RecordFigures:
        """The figures so far."""
        last = self._evals[-1] if self._evals else None
        best = min((event for event in self._evals if math.isfinite(event.loss)), key=lambda e: e.loss, default=None)
        return RecordFigures(
            working_seconds=self._working.seconds if self._working.has_begun else None,
            tokens=self._totals.tokens[-1] if self._totals.tokens else None,
            tokens_per_second=self._totals.rate,
            energy_wh=self._energy,
            eval_loss=last.loss if last is not None else None,
            exact_match=last.exact_match if last is not None else None,
            best_loss=best.loss if best is not None else None,
            best_step=best.step if best is not None else None,
        )


def read_record_figures(events: Path) -> RecordFigures:
    """The figures of an event record, read once from its beginning to its end; unknown ones if it cannot be read."""
    found = _Record()
    try:
        with open_regular(events) as file:
            for line in read_lines(file, LINE_LIMIT):
                if line.is_ended and not line.is_cut:
                    found.apply_line(line.data)
    except OSError:
        return RecordFigures()
    return found.figures()


def read_figures(run: Run) -> RunFigures:
    """The figures of a run as it is now."""
    return RunFigures(**dataclasses.asdict(read_record_figures(run.events_path)), size=directory_size(run.path))


@dataclass(frozen=True)
class _Known:
    """Figures of a run, with the times of its files when they were read."""

    record_stamp: tuple[int, ...]
    size_stamp: tuple[int, ...]
    figures: RunFigures
    rests_until: float = 0.0


class FigureReader:
    """Reads figures of runs, which are kept while their files stay as they are; belongs to one thread.

    Args:
        cache: Keeps those of ended runs beyond the process; None keeps none.
    """

    def __init__(self, cache: SummaryCache | None = None) -> None:
        self._known: dict[str, _Known] = {}
        self._cache = cache
        self._saved = time.monotonic()

    @staticmethod
    def stamp(run: Run) -> tuple[int, ...]:
        """Times of the last changes of a run, which differ once it has to be read again."""
        return (*_size_stamp(run), *_record_stamp(run))

    def read(self, run: Run) -> RunFigures:
        """The figures of a run as it is now."""
        record, size = _record_stamp(run), _size_stamp(run)
        known, now = self._known.get(run.id) or self._recall(run), time.monotonic()
        if known is not None and (known.record_stamp, known.size_stamp) == (record, size):
            return known.figures
        if known is not None and now < known.rests_until:
            return known.figures
        same = known.figures if known is not None and known.record_stamp == record else None
        found = same or read_record_figures(run.events_path)
        # The size of a record of a million steps does not change with the note on it.
        figures = RunFigures(**_record_values(found), size=directory_size(run.path))
        self._known[run.id] = known = _Known(record, size, figures, rest_after(now))
        self._keep(run, known)
        return figures

    def is_known(self, run: Run) -> bool:
        """Whether the figures of a run can be told without reading it."""
        known = self._known.get(run.id) or self._recall(run)
        return known is not None and known.record_stamp == _record_stamp(run)

    def _recall(self, run: Run) -> _Known | None:
        values = self._cache.get(run.id) if self._cache is not None else None
        if values is None:
            return None
        try:
            record, size = (tuple(int(part) for part in values[name]) for name in ("record", "files"))
            figures = RunFigures(**_checked(values["figures"]))
        except (KeyError, TypeError, ValueError):
            return None
        known = self._known[run.id] = _Known(record, size, figures)
        return known

    def _keep(self, run: Run, known: _Known) -> None:
        if self._cache is None or not run.state().is_over:
            return
        figures = dataclasses.asdict(known.figures)
        self._cache.put(
            run.id, {"record": list(known.record_stamp), "files": list(known.size_stamp), "figures": figures}
        )
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write down what is known of ended runs."""
        self._saved = time.monotonic()
        if self._cache is not None:
            self._cache.save()


def _record_values(figures: RecordFigures) -> dict[str, Any]:
    return {item.name: getattr(figures, item.name) for item in dataclasses.fields(RecordFigures)}


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Figures as they were kept.

    Raises:
        TypeError: If they are no figures.
    """
    if not all(value is None or type(value) in (int, float) for value in values.values()):
        raise TypeError("figures are numbers")
    if type(values.get("size")) is not int:
        raise TypeError("a size is a number of bytes")
    return values


def rest_after(begun: float) -> float:
    """The time from which a live run may be read again, by the monotonic clock: a long record is not read all the time.

    Args:
        begun: The time at which reading it has begun.
    """
    now = time.monotonic()
    return now + _REST * (now - begun)


def _record_stamp(run: Run) -> tuple[int, ...]:
    try:
        status = os.stat(run.events_path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def _size_stamp(run: Run) -> tuple[int, ...]:
    return tuple(map(_modified, (run.path, run.checkpoints_path)))


def _modified(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
