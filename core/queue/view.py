"""View of the queue: its entries with the progress of their runs, and their expected begin and end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from core.config.live import GOVERNED, changed, changed_options
from core.config.schema import Config, find_option, full_name
from core.errors import UserError
from core.governor.limits import Limits
from core.governor.night import working_span
from core.governor.policy import QUIET_HOURS
from core.queue.book import Queue
from core.queue.entry import ENDED, QueueEntry, words_of
from core.queue.estimate import Estimator
from core.queue.fate import live_run, run_of
from core.queue.night import Night
from core.queue.status import RunnerStatus, read_status
from core.queue.store import config_path, read_entry_config, read_queue
from core.runs.outlook.estimate import Basis, EarlyEnd, NoEstimate, cut_rest
from core.runs.outlook.time_left import Schedule, estimate
from core.runs.record.history import RunHistory
from core.runs.record.state import END_STATES, EventTail, RunState
from core.runs.record.store import Run

_QUIET = "night.quiet_hours"


@dataclass(frozen=True)
class EntryView:
    """An entry with its expected times.

    Args:
        entry: The entry.
        place: Its place among upcoming entries, 1 for the next; None for others.
        seconds: Expected duration of its run, or time left; None if unknown.
        watt_hours: Expected energy; None if unknown.
        begins: Expected begin in Unix seconds, quiet hours counted, if a runner is on or starts now; None if unknown.
        ends: Expected end, likewise.
        state: State of the run of an active entry, ``index`` while its index is made; empty for others.
        step: Steps done by that run.
        total_steps: Steps of that run; 0 while unknown.
        by: Basis of the duration: ``pace``, measured on this run or an earlier one, or its memory ``plan``; None if
            unknown.
        early_end: Early end of the run by a limit; None if it does all its steps.
        differs: Options whose values differ from those of the entry above it, or for the first below it; of the first
            its quiet hours too, and of the only one its own changes.
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
    differs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """Its name, and what differs from the entry above it: ``korvo · learning_rate 0.0002``."""
        more = words_of({name: value for name, value in self.differs.items() if name not in self.entry.values})
        return f"{self.entry.title} · {more}" if more else self.entry.title

    @property
    def marks(self) -> str:
        """Marks of the duration: ``*`` if it is by the memory plan, ``^`` if a limit ends the run early."""
        return "*" * (self.by == "plan") + "^" * (self.early_end is not None)

    def to_dict(self, *, starts: bool = True) -> dict[str, Any]:
        """The view as JSON.

        Args:
            starts: Whether a runner is on; without one, no times are expected.
        """
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
            "begins_expected": self.begins if starts or self.state else None,
            "ends_expected": self.ends if starts or self.state else None,
            "expected_by": self.by,
            "early_end": None if self.early_end is None else self.early_end.to_dict(),
            "differs": dict(self.differs),
        }


@dataclass(frozen=True)
class QueueView:
    """The queue as shown: the active entry, upcoming entries, ended entries."""

    rows: tuple[EntryView, ...]
    runner: RunnerStatus | None
    """The active runner; None without one, and nothing will start."""
    night: Night = field(default_factory=Night)
    """The limits of the night."""
    free: float | None = None
    """Expected end of the live run, of the queue or not, in Unix seconds; the present without one, None if unknown."""

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
        return self._in_turn[-1].ends if self._in_turn else None

    @property
    def _in_turn(self) -> list[EntryView]:
        return [row for row in self.upcoming if row.entry.state != "held"]

    def share(self, run: str | None, now: float) -> float | None:
        """The share of the time until the end of all runs that passes until the end of one; None if unknown.

        Args:
            run: Its id.
            now: Unix seconds.
        """
        row = next((row for row in self._in_turn if row.entry.run == run), None)
        if row is None or row is self._in_turn[-1]:
            return None if row is None else 1.0
        return None if row.ends is None or self.ends is None else (row.ends - now) / max(self.ends - now, 1.0)


@dataclass(frozen=True)
class _Values:
    """The configuration of an entry with the limits of the night, kept while neither changes."""

    stamp: tuple[int, Night]
    config: Config
    limits: Limits
    options: Mapping[str, Any]
    """The options that are not at their defaults, by section."""


@dataclass(frozen=True)
class _Left:
    """The time left of a live run."""

    seconds: float | None = None
    ends: float | None = None
    """Its expected end in Unix seconds, quiet hours counted; None if unknown."""
    early_end: EarlyEnd | None = None
    is_measured: bool = False
    """True if the run has shown its pace."""


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
        self._values: dict[int, _Values] = {}
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
        clock: float | None = now
        shown: list[EntryView] = []
        active = queue.active
        self._note_end(active if active is None or not active.is_indexing else None)
        if active is not None:
            has_run = active.run is not None and run_of(active).config_path.is_file()
            view_of = self._active if has_run else self._waiting
            shown.append(view_of(active, queue.night, now, known_only))
            clock = now if shown[0].state in END_STATES else shown[0].ends
        elif (other := live_run()) is not None:
            clock = self._left(other, other.state(), now).ends
        free = clock
        for place, entry in enumerate(queue.upcoming, 1):
            view = self._waiting(entry, queue.night, clock if entry.state == "waiting" else None, known_only)
            shown.append(replace(view, place=place))
            clock = view.ends if entry.state == "waiting" else clock
        over = [entry for entry in queue.entries if entry.state in ENDED and entry.state != "removed"]
        over.sort(key=lambda entry: (entry.ended or 0.0, entry.id), reverse=True)
        rows = [*shown, *map(EntryView, over)]
        if not known_only:
            rows = self._with_differences(rows, queue.night)
        return QueueView(tuple(rows), runner, queue.night, free)

    def _with_differences(self, rows: list[EntryView], night: Night) -> list[EntryView]:
        """The rows, each with what differs from the one above it; the first from the one below it, or from its file."""
        read = [self._read(row.entry, night) for row in rows]
        options = [None if values is None else values.options for values in read]
        found = []
        for row, here, beside in zip(rows, options, [*options[1:2], *options], strict=False):
            if here is None or beside is None:
                found.append(row)
                continue
            names = [change.name for change in changed_options(beside, here)]
            if row is rows[0]:
                names += [_QUIET] * ("quiet_hours" in here.get("night", {}))
                names += [full_name(text.partition("=")[0]) for text in row.entry.overrides if len(rows) == 1]
            known = filter(None, map(find_option, dict.fromkeys(names)))
            differs = {at.name: here.get(at.section, {}).get(at.key, at.default) for at in known}
            found.append(replace(row, differs={name: differs[name] for name in differs if name not in night.values}))
        return found

    def _read(self, entry: QueueEntry, night: Night) -> _Values | None:
        """The configuration of an entry; None if it cannot be read."""
        try:
            stamp = config_path(entry.id).stat().st_mtime_ns, night
            known = self._values.get(entry.id)
            if known is not None and known.stamp == stamp:
                return known
            if known is None or known.stamp[0] != stamp[0]:
                self._known.pop(entry.id, None)
            config = read_entry_config(entry)
            options = config.model_dump(mode="json", exclude_defaults=True)
            found = _Values(stamp, config, Limits.of(night.applied(config)), options)
        except (OSError, UserError):
            return None
        self._values[entry.id] = found
        return found

    def _note_end(self, active: QueueEntry | None) -> None:
        """After a run has ended, drop estimates by plans: the run may give a measured pace."""
        before, self._active_id = self._active_id, active.id if active is not None else None
        if self._estimator is not None and before not in (None, self._active_id):
            self._estimator.look_again()
            self._known = {number: view for number, view in self._known.items() if view.by == "pace"}

    def _active(self, entry: QueueEntry, night: Night, now: float, known_only: bool) -> EntryView:
        """The active entry with its time left."""
        if entry.is_indexing:
            return EntryView(entry, begins=entry.begun, state="index")
        run = run_of(entry)
        state = run.state()
        if state.state in END_STATES:
            # The runner is about to record its end.
            over = EntryView(entry, begins=entry.begun, state=state.state)
            return replace(over, step=state.step, total_steps=state.total_steps)
        expected = EntryView(entry)
        if not state.step:
            expected = self._waiting(entry, night, None, known_only)
        left = self._left(run, state, now, expected.seconds)
        by: Basis | None = "pace" if left.is_measured else expected.by
        shown = EntryView(entry, None, left.seconds, None, entry.begun, left.ends, by=by, early_end=left.early_end)
        return replace(shown, state=state.state, step=state.step, total_steps=state.total_steps)

    def _left(self, run: Run, state: RunState, now: float, expected: float | None = None) -> _Left:
        """The time left of a live run.

        Args:
            run: The run.
            state: Its state.
            now: Unix seconds.
            expected: Seconds expected of it before its first step; None if unknown.
        """
        history, values, end = self._history(run), run.values(), None
        schedule = Schedule.of(values).changed(history.settings)
        measured = estimate(history.timings, schedule, state.total_steps, now)
        seconds = expected
        if measured is not None:
            seconds, end = cut_rest(values, history, state.step, state.total_steps, measured.seconds)
        if seconds is None:
            return _Left()
        # The end of a pause is unknown, but for that of quiet hours.
        is_known = state.state != "paused" or state.reason.startswith(QUIET_HOURS)
        ends = working_span(_limits(run, history), now, seconds)[1] if is_known else None
        return _Left(seconds, ends, end, is_measured=measured is not None)

    def _history(self, run: Run) -> RunHistory:
        if self._followed is None or self._followed[0] != run:
            self._followed = run, EventTail(run.events_path), RunHistory()
        _, tail, history = self._followed
        for events in tail.batches():
            for event in events:
                history.apply(event)
        return history

    def _waiting(self, entry: QueueEntry, night: Night, clock: float | None, known_only: bool) -> EntryView:
        """An entry without a run, from the time on that the device is free for it; None if that is unknown."""
        if self._estimator is None or (known_only and entry.id not in self._known):
            return EntryView(entry, begins=clock)
        if (values := self._read(entry, night)) is None:
            return EntryView(entry, begins=clock)
        if entry.id not in self._known:
            self._known[entry.id] = _expected(entry, values.config, self._estimator)
        view = replace(self._known[entry.id], entry=entry)
        if clock is None:
            return view
        begins, ends = working_span(values.limits, clock, view.seconds or 0.0)
        return replace(view, begins=begins, ends=ends if view.seconds is not None else None)


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
        return view.free
    return None if view.runner is None or any(row.by == "plan" for row in before) else view.ends


def _limits(run: Run, history: RunHistory) -> Limits:
    """The limits of a live run, with the changes made to it; none if they cannot be read."""
    try:
        settings = {name: value for name, value in history.settings.items() if name in GOVERNED}
        return Limits.of(changed(run.config(), settings))
    except (UserError, ValidationError):
        return Limits()


def _expected(entry: QueueEntry, config: Config, estimator: Estimator) -> EntryView:
    found = estimator.estimate(config)
    if isinstance(found, NoEstimate):
        return EntryView(entry)
    end = found.early_end
    return EntryView(entry, seconds=found.seconds, watt_hours=found.watt_hours, by=found.by, early_end=end)
