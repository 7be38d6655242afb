"""Working time of a run: that of its workers, without pauses and without the time between one and the next."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

from core.runs.events import (
    LINE_LIMIT,
    ControlEvent,
    Event,
    FailedEvent,
    FinishedEvent,
    GovernorEvent,
    MalformedEventError,
    PhaseEvent,
    StepEvent,
    StoppedEvent,
    decode_event,
)
from core.small_files import open_regular

#: First phase of a worker.
_FIRST_PHASE = "importing"
#: Longest plausible time between two events, in seconds.
_LONGEST_SECONDS = 3e9

_NUMBER = rb"(\d{1,16}(?:\.\d*)?(?:[eE][+-]?\d{1,2})?)"
#: The beginning of an event as it is encoded: its time, its type, and of a phase the name.
_BEGINNING = re.compile(rb'\{"t": ' + _NUMBER + rb', "type": "(\w+)"(?:, "name": "(\w+)")?')
_PAUSED = re.compile(rb'"paused_seconds": ' + _NUMBER)
_STEP, _PHASE = StepEvent.type.encode(), PhaseEvent.type.encode()
#: Types of which more than the time counts, and of which there are few.
_DECODED = frozenset(
    kind.type.encode() for kind in (ControlEvent, GovernorEvent, FinishedEvent, StoppedEvent, FailedEvent)
)


class WorkingTime:
    """The working time of a run; feed it every event in order.

    A pause counts as long as it was on by what was asked for, or as the next step tells, whichever is longer: some
    pauses nobody asks for, and the last one may be followed by no step.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._phase = ""
        self._worked = 0.0
        self._paused = 0.0
        self._pausing = 0.0
        self._pausers: set[str] = set()
        self._is_over = False

    @property
    def seconds(self) -> float:
        """Seconds of work up to the last event."""
        return max(self._worked - self._paused - self._pausing, 0.0)

    @property
    def has_begun(self) -> bool:
        """Whether there was an event with a time."""
        return self._last is not None

    def apply(self, event: Event) -> None:
        """Apply one event."""
        self.advance(event.t, event.name if isinstance(event, PhaseEvent) else "")
        if isinstance(event, StepEvent):
            self.settle(event.paused_seconds)
        elif isinstance(event, GovernorEvent) and event.action in ("pause", "resume"):
            self._pause("governor", is_on=event.action == "pause")
        elif isinstance(event, ControlEvent) and event.command in ("pause", "resume"):
            if not event.result.startswith("refused"):
                self._pause("user", is_on=event.command == "pause")
        elif isinstance(event, FinishedEvent):
            self._is_over = True

    def advance(self, time: float, phase: str = "") -> None:
        """Apply the time of an event, and the phase that it reports; empty for an event of another type."""
        # A worker reports its first phase again where that has got further.
        if phase and (self._is_over or (phase == _FIRST_PHASE and self._phase != _FIRST_PHASE)):
            self.settle(0.0)
            self._is_over = False
            self._pausers.clear()
        elif self._last is not None and not self._is_over:
            passed = _sound(time - self._last)
            self._worked += passed
            self._pausing += passed if self._pausers else 0.0
        self._phase = phase or self._phase
        self._last = time if not math.isnan(time) else self._last

    def _pause(self, who: str, *, is_on: bool) -> None:
        """Apply the beginning or the end of a pause; that of the user and that of the governor end apart."""
        if is_on:
            self._pausers.add(who)
        else:
            self._pausers.discard(who)

    def settle(self, paused: float) -> None:
        """Apply the seconds of pause since the step before, as a step tells them."""
        self._paused += max(_sound(paused), self._pausing)
        self._pausing = 0.0


def working_seconds(events: Path) -> float | None:
    """The working time of a run from its event record, of which only what matters is decoded.

    Returns:
        None if the record cannot be read, or has no event.
    """
    found = WorkingTime()
    try:
        with io.BufferedReader(open_regular(events), 1 << 16) as file:
            for line in file:
                if line.endswith(b"\n") and len(line) <= LINE_LIMIT:
                    _apply_line(found, line)
    except OSError:
        return None
    return found.seconds if found.has_begun else None


def _apply_line(found: WorkingTime, line: bytes) -> None:
    begins = _BEGINNING.match(line)
    if begins is None or begins[2] in _DECODED:
        try:
            event = decode_event(line)
        except MalformedEventError:
            return
        if event is not None:
            found.apply(event)
        return
    found.advance(float(begins[1]), (begins[3] or b"").decode() if begins[2] == _PHASE else "")
    if begins[2] == _STEP and (paused := _PAUSED.search(line)) is not None:
        found.settle(float(paused[1]))


def _sound(seconds: float) -> float:
    """A plausible duration: not negative, as a clock may have been set back, and no longer than a life."""
    return seconds if 0 < seconds < _LONGEST_SECONDS else 0.0
