"""A curve over steps, ready to be drawn: smoothed as it grows, and reduced to as many columns as there are pixels.

Values that are not finite are gaps: they interrupt the curve, are listed, and never touch bounds or smoothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import NamedTuple

#: A new point weighs this much against this much and one for each point before it, until that is less than its share.
YOUNG_WEIGHT = 4.0


class Bucket(NamedTuple):
    """What falls into one pixel column."""

    x: int
    """The column, from 0."""
    low: float
    high: float
    first: float
    """The earliest finite value in the column, and ``last`` the latest: a line enters and leaves there."""
    last: float
    joined: bool
    """Whether the curve comes uninterrupted from the bucket before."""


class Series:
    """Values by step, steps ascending.

    Args:
        smoothing: Share that the past keeps in the moving average, 0 (none) to just below 1.
    """

    def __init__(self, smoothing: float = 0.9) -> None:
        self.smoothing = _sound(smoothing)
        self.steps: list[int] = []
        self.values: list[float] = []
        """As appended, NaN and infinities included."""
        self.smoothed: list[float] = []
        """The exponential moving average; NaN where the value is a gap."""
        self.gaps: list[int] = []
        """Steps whose value is not finite."""
        # The same values with each gap as the neutral element of min and max, so that both run at C speed.
        self._raw = _Extremes()
        self._smooth = _Extremes()
        self._average = 0.0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float | None:
        """The newest value, NaN included; None when empty."""
        return self.values[-1] if self.values else None

    @property
    def last_step(self) -> int | None:
        """The newest step; None when empty."""
        return self.steps[-1] if self.steps else None

    @property
    def last_smoothed(self) -> float | None:
        """The newest smoothed value; None when empty or at a gap."""
        return self.smoothed[-1] if self.smoothed and math.isfinite(self.smoothed[-1]) else None

    def append(self, step: int, value: float) -> None:
        """Add a point. A step that is not beyond the last one replaces everything from it on, as a resumed run does."""
        if self.steps and step <= self.steps[-1]:
            self.truncate(step)
        self.steps.append(step)
        self.values.append(value)
        self._raw.append(value)
        if math.isfinite(value):
            # The window grows with the points: at a fixed one a short run's curve lags far above its falling loss.
            earlier = len(self.values) - 1 - len(self.gaps)
            weight = max(1.0 - self.smoothing, YOUNG_WEIGHT / (earlier + YOUNG_WEIGHT))
            self._average += weight * (value - self._average)
            value = self._average
        else:
            self.gaps.append(step)
            value = math.nan
        self.smoothed.append(value)
        self._smooth.append(value)

    def truncate(self, step: int) -> None:
        """Drop the points from ``step`` on."""
        keep = bisect_left(self.steps, step)
        if keep == len(self.steps):
            return
        del self.steps[keep:], self.values[keep:], self.smoothed[keep:]
        del self.gaps[bisect_left(self.gaps, step) :]
        self._raw.truncate(keep)
        self._smooth.truncate(keep)
        self._average = next((value for value in reversed(self.smoothed) if math.isfinite(value)), 0.0)

    def smooth(self, smoothing: float) -> None:
        """Smooth everything again, with another share."""
        fresh = Series(smoothing)
        for step, value in zip(self.steps, self.values, strict=True):
            fresh.append(step, value)
        vars(self).update(vars(fresh))

    def at(self, step: int) -> float | None:
        """The value of the newest point not beyond ``step``; None when there is none."""
        index = bisect_right(self.steps, step) - 1
        return self.values[index] if index >= 0 else None

    def bounds(
        self, first: int | None = None, last: int | None = None, *, smooth: bool = False
    ) -> tuple[float, float] | None:
        """The least and the greatest finite value between two steps (inclusive); None when there is none."""
        extremes = self._smooth if smooth else self._raw
        low, high = extremes.of(*self._slice(first, last))
        return (low, high) if low <= high else None

    def bucket(
        self, width: int, first: int | None = None, last: int | None = None, *, smooth: bool = False
    ) -> list[Bucket]:
        """Reduce the curve between two steps to pixel columns; every extreme survives.

        Args:
            width: Columns; the step ``first`` falls into column 0, ``last`` into column ``width - 1``.
            first: Step at the left edge; the first one by default. It need not have a point.
            last: Step at the right edge; the last one by default.
            smooth: Take the moving average instead of the values.

        Returns:
            The columns that hold a finite value, from left to right.
        """
        start, stop = self._slice(first, last)
        if start >= stop or width < 1:
            return []
        left = self.steps[0] if first is None else first
        span = (self.steps[-1] if last is None else last) - left
        extremes = self._smooth if smooth else self._raw
        values, found, joined = (self.smoothed if smooth else self.values), [], False
        for x, begin, end in self._columns(start, stop, left, span, width):
            low, high = extremes.of(begin, end)
            if low > high:
                joined = False
                continue
            head, tail = begin, end - 1
            while not math.isfinite(values[head]):
                head, joined = head + 1, False
            while not math.isfinite(values[tail]):
                tail -= 1
            found.append(Bucket(x, low, high, values[head], values[tail], joined))
            joined = tail == end - 1
        return found

    def _columns(self, start: int, stop: int, left: int, span: int, width: int) -> list[tuple[int, int, int]]:
        """(column, begin, end) of every column that holds a point."""
        if span <= 0 or width == 1:
            return [(0, start, stop)]
        steps, scale = self.steps, (width - 1) / span
        if stop - start <= 2 * width:
            found: list[tuple[int, int, int]] = []
            for index in range(start, stop):
                x = int((steps[index] - left) * scale + 0.5)
                if found and found[-1][0] == x:
                    found[-1] = (x, found[-1][1], index + 1)
                else:
                    found.append((x, index, index + 1))
            return found
        found = []
        begin = start
        for x in range(width):
            # The first step that rounds to the next column.
            edge = left + math.ceil((x + 0.5) / scale) if x < width - 1 else left + span + 1
            end = bisect_left(steps, edge, begin, stop)
            if end > begin:
                found.append((x, begin, end))
            begin = end
        return found

    def _slice(self, first: int | None, last: int | None) -> tuple[int, int]:
        start = 0 if first is None else bisect_left(self.steps, first)
        return start, len(self.steps) if last is None else bisect_right(self.steps, last)


def _sound(smoothing: float) -> float:
    """A share that leaves something to the present: at 1 the average would never move."""
    return min(max(smoothing, 0.0), 0.9999)


class _Extremes:
    """Least and greatest finite value of any slice."""

    def __init__(self) -> None:
        self._lows: list[float] = []
        self._highs: list[float] = []
        self._whole = (math.inf, -math.inf)

    def append(self, value: float) -> None:
        finite = math.isfinite(value)
        self._lows.append(value if finite else math.inf)
        self._highs.append(value if finite else -math.inf)
        if finite:
            low, high = self._whole
            self._whole = (value if value < low else low, value if value > high else high)

    def truncate(self, keep: int) -> None:
        del self._lows[keep:], self._highs[keep:]
        self._whole = (min(self._lows, default=math.inf), max(self._highs, default=-math.inf))

    def of(self, begin: int, end: int) -> tuple[float, float]:
        """(inf, -inf) when the slice holds no finite value."""
        if begin <= 0 and end >= len(self._lows):
            return self._whole
        return min(self._lows[begin:end], default=math.inf), max(self._highs[begin:end], default=-math.inf)
