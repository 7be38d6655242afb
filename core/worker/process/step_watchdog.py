"""Watchdog of optimizer steps: notices one that takes much longer than steps do."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

#: A step takes long from so many times the median on, and from so many seconds on.
LONG_FACTOR, LONG_SECONDS = 10.0, 30.0
#: Steps whose median counts, and the fewest that make one.
MEDIAN_OF, MEDIAN_FROM = 64, 5


class StepWatchdog:
    """Watchdog of the training thread, which tells it of its steps; another thread looks at it.

    Args:
        clock: Seconds that only ever go up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=MEDIAN_OF)
        self._began: float | None = None
        self._told = False

    def begin(self) -> None:
        """A step begins."""
        with self._guard:
            self._began, self._told = self._clock(), False

    def done(self, seconds: float) -> None:
        """A step took so long."""
        with self._guard:
            self._seconds.append(seconds)

    def end(self) -> None:
        """No step is under way."""
        with self._guard:
            self._began = None

    def look(self) -> tuple[float, float] | None:
        """Seconds of the step under way and the median, once for a step that takes long; else None."""
        with self._guard:
            if self._began is None or self._told or len(self._seconds) < MEDIAN_FROM:
                return None
            took, median = self._clock() - self._began, statistics.median(self._seconds)
            if took < max(LONG_SECONDS, LONG_FACTOR * median):
                return None
            self._told = True
            return took, median
