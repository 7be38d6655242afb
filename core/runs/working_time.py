"""Working time of a run: that of its workers, without pauses and without the time between one and the next."""

from __future__ import annotations

import math

from core.runs.events import ControlEvent, Event, FinishedEvent, GovernorEvent, PhaseEvent, StepEvent
from core.runs.totals import sound

#: First phase of a worker.
_FIRST_PHASE = "importing"


class WorkingTime:
    """The working time of a run; feed it every event in order.

    A pause counts as long as it was on by what was asked for, or as the next step tells, whichever is longer: some
    pauses nobody asks for, and the last one may be followed by no step.
    """

    def __init__(self) -> None:
        self.starts = 0
        """Number of times that a worker has started."""
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
        elif isinstance(event, ControlEvent) and event.command in ("pause", "park", "resume"):
            if not event.result.startswith("refused"):
                self._pause("user", is_on=event.command != "resume")
        elif isinstance(event, FinishedEvent):
            self._is_over = True

    def advance(self, time: float, phase: str = "") -> None:
        """Apply the time of an event, and the phase that it reports; empty for an event of another type."""
        # A worker reports its first phase again where that has got further.
        if phase and (self._is_over or (phase == _FIRST_PHASE and self._phase != _FIRST_PHASE)):
            self.settle(0.0)
            self.starts += 1
            self._is_over = False
            self._pausers.clear()
        elif self._last is not None and not self._is_over:
            passed = sound(time - self._last)
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
        self._paused += max(sound(paused), self._pausing)
        self._pausing = 0.0
