"""View of the queue: its entries with the progress of their runs, and their expected begin and end."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from core.errors import UserError
from core.queue.book import Queue
from core.queue.entry import ENDED, QueueEntry
from core.queue.estimate import Estimator
from core.queue.fate import run_of
from core.queue.status import RunnerStatus, read_status
from core.queue.store import read_entry_config, read_queue
from core.runs.outlook.estimate import Basis, EarlyEnd, NoEstimate, cut_rest
from core.runs.outlook.time_left import Schedule, estimate
from core.runs.record.history import RunHistory
from core.runs.record.state import EventTail
from core.runs.record.store import Run


@dataclass(frozen=True)
class EntryView:
    """An entry with its expected times.

    Args:
        entry: The entry.
        place: Its place among upcoming entries, 1 for the next; None for others.
        seconds: Expected duration of its run, or time left; None if unknown.
        watt_hours: Expected energy; None if unknown.
        begins: Expected begin in Unix seconds; None if unknown, or without a runner.
        ends: Expected end, likewise.
        state: State of the run of an active entry; empty for others.
        step: Steps done by that run.
        total_steps: Steps of that run; 0 while unknown.
        by: Basis of the duration: ``pace``, measured on this run or an earlier one, or its memory ``plan``; None if
            unknown.
        early_end: Early end of the run by a limit; None if it does all its steps.
    """

    entry: QueueEntry
    place: int | None = None
    seconds: float | None = None
    watt_hours: float | None = None
    begins: float | None = None
    ends: float | None = None
    state: str = ""
    step: int = 0
    total_steps: int = 0
    by: Basis | None = None
    early_end: EarlyEnd | None = None

    @property
    def marks(self) -> str:
        """Marks of the duration: ``*`` if it is by the memory plan, ``^`` if a limit ends the run early."""
        return "*" * (self.by == "plan") + "^" * (self.early_end is not None)

    def to_dict(self) -> dict[str, Any]:
        """The view as JSON."""
        entry = self.entry
        return {
            "id": entry.id,
            "name": entry.name,
            "state": entry.state,
            "place": self.place,
            "run": entry.run,
            "run_state": self.state or entry.outcome or None,
            "step": self.step,
            "total_steps": self.total_steps,
            "reason": entry.reason,
            "source": entry.source,
            "overrides": list(entry.overrides),
            "sweep": entry.sweep,
            "values": dict(entry.values),
            "added": entry.added,
            "begun": entry.begun,
            "ended": entry.ended,
            "seconds_expected": self.seconds,
            "watt_hours_expected": self.watt_hours,
            "begins_expected": self.begins,
            "ends_expected": self.ends,
            "expected_by": self.by,
            "early_end": None if self.early_end is None else self.early_end.to_dict(),
        }


@dataclass(frozen=True)
class QueueView:
    """The queue as shown: the active entry, upcoming entries, ended entries."""

    rows: tuple[EntryView, ...]
    runner: RunnerStatus | None
    """The active runner; None without one, and nothing will start."""

    @property
    def upcoming(self) -> list[EntryView]:
        """Entries that are active, wait or are held."""
        return [row for row in self.rows if not row.entry.is_over]

    @property
    def has_plans(self) -> bool:
        """True if a duration is by a memory plan, and not measured."""
        return any(row.by == "plan" for row in self.rows)

    @property
    def early_ends(self) -> list[str]:
        """The options that end runs before their last step."""
        return sorted({row.early_end.option for row in self.upcoming if row.early_end is not None})

    @property
    def ends(self) -> float | None:
        """Expected end of all waiting entries in Unix seconds; None if unknown."""
        rows = [row for row in self.upcoming if row.entry.state != "held"]
        return rows[-1].ends if rows else None


class QueueReader:
    """Reads the queue repeatedly: only new events of the active run; datasets and earlier runs once.

    Blocks, as it reads configurations and records; for use by one thread at a time.

    Args:
        estimator: Estimates waiting runs; None to leave them without estimates.
    """

    def __init__(self, estimator: Estimator | None = None) -> None:
        self._estimator = estimator
        self._followed: tuple[Run, EventTail, RunHistory] | None = None
        self._known: dict[int, EntryView] = {}
        self._active_id: int | None = None

    def read(self, now: float | None = None, *, known_only: bool = False) -> QueueView:
        """The present queue.

        Args:
            now: Unix seconds; by default the present.
            known_only: Whether to make no new estimates; the first one may take a second or two.

        Raises:
            UserError: If it cannot be read.
        """
        return self.view(read_queue(), read_status(), time.time() if now is None else now, known_only=known_only)

    def view(self, queue: Queue, runner: RunnerStatus | None, now: float, *, known_only: bool = False) -> QueueView:
        """The view of a queue."""
        clock: float | None = now if runner is not None else None
        shown: list[EntryView] = []
        self._note_end(queue.active)
        if (active := queue.active) is not None:
            shown.append(self._active(active, now))
            clock = shown[0].ends if clock is not None else None
        for place, entry in enumerate(queue.upcoming, 1):
            view = replace(self._waiting(entry, known_only=known_only), entry=entry, place=place)
            if entry.state == "waiting":
                ends = clock + view.seconds if clock is not None and view.seconds is not None else None
                view = replace(view, begins=clock, ends=ends)
                clock = ends
            shown.append(view)
        over = [entry for entry in queue.entries if entry.state in ENDED and entry.state != "removed"]
        over.sort(key=lambda entry: (entry.ended or 0.0, entry.id), reverse=True)
        return QueueView((*shown, *map(EntryView, over)), runner)

    def _note_end(self, active: QueueEntry | None) -> None:
        """After a run has ended, drop estimates by plans: the run may give a measured pace."""
        before, self._active_id = self._active_id, active.id if active is not None else None
        if self._estimator is not None and before not in (None, self._active_id):
            self._estimator.look_again()
            self._known = {number: view for number, view in self._known.items() if view.by == "pace"}

    def _active(self, entry: QueueEntry, now: float) -> EntryView:
        """The active entry with its time left."""
        if entry.run is None or not (run := run_of(entry)).config_path.is_file():
            return EntryView(entry, begins=entry.begun)
        state, history = run.state(), self._history(run)
        values = run.values()
        schedule = Schedule.of(values).changed(history.settings)
        left = estimate(history.timings, schedule, state.total_steps, now)
        seconds, end = left.seconds if left is not None else None, None
        if seconds is not None:
            seconds, end = cut_rest(values, history, state.step, state.total_steps, seconds)
        # The end of a pause is unknown.
        ends = now + seconds if seconds is not None and state.state != "paused" else None
        by: Basis | None = "pace" if seconds is not None else None
        shown = EntryView(entry, None, seconds, None, entry.begun, ends, by=by, early_end=end)
        return replace(shown, state=state.state, step=state.step, total_steps=state.total_steps)

    def _history(self, run: Run) -> RunHistory:
        if self._followed is None or self._followed[0] != run:
            self._followed = run, EventTail(run.events_path), RunHistory()
        _, tail, history = self._followed
        for events in tail.batches():
            for event in events:
                history.apply(event)
        return history

    def _waiting(self, entry: QueueEntry, *, known_only: bool) -> EntryView:
        if self._estimator is None or (known_only and entry.id not in self._known):
            return EntryView(entry)
        if entry.id not in self._known:
            self._known[entry.id] = _expected(entry, self._estimator)
        return self._known[entry.id]


def next_begin(estimator: Estimator, now: float | None = None) -> float | None:
    """Expected begin of a run that is added now, in Unix seconds; None if it is not known by measurements.

    Args:
        estimator: Estimates the entries before it.
        now: Unix seconds; by default the present.
    """
    moment = time.time() if now is None else now
    view = QueueReader(estimator).read(moment)
    before = [row for row in view.upcoming if row.entry.state != "held"]
    if not before:
        return moment
    return None if any(row.by == "plan" for row in before) else view.ends


def _expected(entry: QueueEntry, estimator: Estimator) -> EntryView:
    try:
        found = estimator.estimate(read_entry_config(entry))
    except UserError:
        return EntryView(entry)
    if isinstance(found, NoEstimate):
        return EntryView(entry)
    end = found.early_end
    return EntryView(entry, seconds=found.seconds, watt_hours=found.watt_hours, by=found.by, early_end=end)
