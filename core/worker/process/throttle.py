"""The duty cycle of the training thread: rests between micro-batches."""

from __future__ import annotations

import time
from collections.abc import Callable

from core.worker.process.control import Controls

#: The most rest that is owed, in seconds: what a request has cut short is made up for, within bounds.
MOST_OWED = 120.0
#: The longest rest without a look at the duty cycle and at signals, in seconds.
SLICE = 0.2
#: The shortest rest that is worth one, in seconds.
SHORTEST = 1e-4


def _nothing() -> None:
    """A CPU has done its work when the call returns."""


class Throttle:
    """Rests so that a share of the time is worked. Another thread sets :attr:`duty`; the training thread calls
    :meth:`rest`, which with full duty costs a comparison.

    Args:
        controls: A request ends a rest at once; what is left of it is owed.
        duty: The share of the time that is worked.
        synchronize: Waits until the device has done what it was given, as work on a GPU goes on after the call.
        clock: Seconds that only ever go up.
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
        """Rest for what was worked since the last call."""
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
        """A pause is over, which was rest enough."""
        self._since, self._owed = None, 0.0
