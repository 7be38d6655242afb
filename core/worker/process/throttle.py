"""Duty cycle of the training thread: rests between micro-batches."""

from __future__ import annotations

import time
from collections.abc import Callable

from core.worker.process.control import Controls

#: Maximum owed rest, in seconds: rest cut short by a request is made up for, within this bound.
MOST_OWED = 120.0
#: Maximum rest before checking the duty cycle and signals again, in seconds.
SLICE = 0.2
#: Minimum rest, in seconds.
SHORTEST = 1e-4


def _nothing() -> None:
    """A CPU is done when the call returns."""


class Throttle:
    """Rests so that a given share of the time is spent working. Another thread sets :attr:`duty`; the training thread
    calls :meth:`rest`, which costs one comparison at full duty.

    Args:
        controls: A request ends a rest at once; the remainder is owed.
        duty: Share of time spent working.
        synchronize: Waits until the device is idle, since GPU work continues after the call.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        controls: Controls,
        duty: float = 1.0,
        synchronize: Callable[[], None] = _nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.duty = duty
        self.synchronize = synchronize
        self.rested_seconds = 0.0
        """Seconds rested so far."""
        self._controls = controls
        self._clock = clock
        self._since: float | None = None
        self._owed = 0.0

    def rest(self) -> None:
        """Rest for the work since the last call."""
        duty = self.duty
        if duty >= 1.0:
            self._since = None
            return
        self.synchronize()
        now = self._clock()
        if self._since is not None:
            self._owed = min(self._owed + (now - self._since) * (1.0 / duty - 1.0), MOST_OWED)
            self._rest()
        self._since = self._clock()

    def _rest(self) -> None:
        began = self._clock()
        while self._owed > SHORTEST and self.duty < 1.0:
            goes_on = self._controls.rest(min(self._owed, SLICE))
            now = self._clock()
            self._owed -= now - began
            self.rested_seconds += now - began
            began = now
            if not goes_on:
                return
        self._owed = 0.0

    def paused(self) -> None:
        """Reset after a pause, which was rest enough."""
        self._since, self._owed = None, 0.0
