"""Readings over time: the warmer half of the newest temperatures, and average power."""

from __future__ import annotations

import math
from collections import deque


class WarmMean:
    """The mean of the warmer half of the newest readings.

    A chip cools by several degrees in the rest between two micro-batches, and readings fall on work and on rest: what
    is to be held is how warm it gets in work.

    Args:
        count: Readings that count.
    """

    def __init__(self, count: int = 6) -> None:
        self._readings: deque[float] = deque(maxlen=count)

    def add(self, value: float) -> float:
        """Take a reading in; returns the mean."""
        self._readings.append(value)
        warm = sorted(self._readings)[len(self._readings) // 2 :]
        return sum(warm) / len(warm)


class AveragePower:
    """Average power by a meter of energy, with an exponential window.

    Args:
        window: Its time constant in seconds.
    """

    def __init__(self, window: float) -> None:
        self.window = window
        self.watts: float | None = None
        """The average; None before two readings."""
        self._before: tuple[float, float] | None = None

    def add(self, moment: float, joules: float) -> float | None:
        """Take a reading in.

        Args:
            moment: Seconds, of any clock that only goes up.
            joules: Energy used so far.

        Returns:
            The average power in watts; None before the second reading.
        """
        before, self._before = self._before, (moment, joules)
        if before is None or moment <= before[0]:
            return self.watts
        seconds = moment - before[0]
        now = max(joules - before[1], 0.0) / seconds
        weight = 1.0 - math.exp(-seconds / self.window)
        self.watts = now if self.watts is None else self.watts + weight * (now - self.watts)
        return self.watts
