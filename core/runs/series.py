"""Chart series: a curve over steps, smoothed as it grows, and reduced to pixel columns for drawing.

Values that are not finite are gaps: they interrupt the curve, are listed, and never touch bounds or smoothing.

A curve never has more points than a screen can resolve. If it would, neighbors are merged into one point, which keeps
their extremes.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from typing import NamedTuple

#: Weight of an early point: this, over the sum of this and the number of points before it, until that is less than its
#: final weight.
YOUNG_WEIGHT = 4.0
#: Most points kept; at this number, pairs of neighbors are merged.
MOST_POINTS = 1 << 16
#: Smoothing clamps values to this, positive or negative, so that no sum of two is infinite.
GREATEST = 1e300


class Bucket(NamedTuple):
    """Points that fall into one pixel column."""

    x: int
    """The column, from 0."""
    low: float
    high: float
    first: float
    """Earliest finite value in the column, and ``last`` the latest: a line enters and leaves there."""
    last: float
    joined: bool
    """Whether the curve is uninterrupted from the previous bucket."""


class Series:
    """Values by step, steps ascending.

    Args:
        smoothing: Weight of the past in the moving average, 0 (none) to just below 1.
    """

    def __init__(self, smoothing: float = 0.9) -> None:
        self.smoothing = _sound(smoothing)
        self.steps: list[int] = []
        """Step of each point; of a merged point, the first step."""
        self.values: list[float] = []
        """Values as appended, NaN and infinities included; of a merged point, the newest finite one."""
        self.smoothed: list[float] = []
        """Exponential moving average; NaN where the value is a gap."""
        self.gaps: list[int] = []
        """The newest steps whose value is not finite."""
        # The same values with each gap as the neutral element of min and max, so that both run at C speed.
        self._raw = _Extremes()
        self._smooth = _Extremes()
        self._average = 0.0
        self._averages: list[float] = []
        self._finite = 0
        self._last_step: int | None = None
        #: Values per merged point, and the number already in the newest point.
        self._stride = 1
        self._filled = 1

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float | None:
        """Newest value, NaN included; None if empty."""
        return self.values[-1] if self.values else None

    @property
    def last_step(self) -> int | None:
        """Newest step; None if empty."""
        return self._last_step

    def append(self, step: int, value: float) -> None:
        """Append a value. A step not beyond the last one replaces everything from it on, as in a resumed run."""
        if self._last_step is not None and step <= self._last_step:
            self.truncate(step)
        self._last_step = step
        average = math.nan
        if math.isfinite(value):
            # The window grows with the points: with a fixed one a short run's curve lags far above its falling loss.
            weight = max(1.0 - self.smoothing, YOUNG_WEIGHT / (self._finite + YOUNG_WEIGHT))
            bounded = value if -GREATEST < value < GREATEST else math.copysign(GREATEST, value)
            self._average += weight * (bounded - self._average)
            self._finite += 1
            average = self._average
        else:
            self.gaps.append(step)
            if len(self.gaps) > 2 * MOST_POINTS:
                del self.gaps[:-MOST_POINTS]
        if self._filled < self._stride and self.steps:
            self._filled += 1
            if math.isfinite(value) or not math.isfinite(self.values[-1]):
                self.values[-1], self.smoothed[-1] = value, average
            self._averages[-1] = self._average
            self._raw.widen(value)
            self._smooth.widen(average)
            return
        self.steps.append(step)
        self.values.append(value)
        self.smoothed.append(average)
        self._averages.append(self._average)
        self._raw.append(value)
        self._smooth.append(average)
        self._filled = 1
        if len(self.steps) >= MOST_POINTS:
            self._halve()

    def _halve(self) -> None:
        """Merge pairs of neighbors."""
        is_even = len(self.steps) % 2 == 0
        for values in (self.values, self.smoothed):
            values[:] = [
                second if math.isfinite(second) else first
                for first, second in zip(values[::2], values[1::2] + values[-1:], strict=False)
            ]
        self.steps = self.steps[::2]
        self._averages = _seconds(self._averages)
        self._raw.halve()
        self._smooth.halve()
        self._filled += self._stride if is_even else 0
        self._stride *= 2

    def truncate(self, step: int) -> None:
        """Drop the points from ``step`` on."""
        if self._last_step is None or self._last_step < step:
            return
        keep = bisect_left(self.steps, step)
        del self.steps[keep:], self.values[keep:], self.smoothed[keep:], self._averages[keep:]
        del self.gaps[bisect_left(self.gaps, step) :]
        self._raw.truncate(keep)
        self._smooth.truncate(keep)
        self._average = self._averages[-1] if keep else 0.0
        # Some steps of a merged point may have been dropped; their values are unknown.
        is_exact = self._stride == 1
        self._finite = keep - len(self.gaps) if is_exact else keep * self._stride
        self._last_step = (self.steps[-1] if is_exact else step - 1) if keep else None
        self._stride = self._stride if keep else 1
        self._filled = self._stride

    def smooth(self, smoothing: float) -> None:
        """Smooth everything again, with another weight."""
        fresh = Series(smoothing)
        for step, value in zip(self.steps, self.values, strict=True):
            fresh.append(step, value)
        self.smoothing, self.smoothed, self._smooth = fresh.smoothing, fresh.smoothed, fresh._smooth
        self._averages, self._average = fresh._averages, fresh._average

    def at(self, step: int) -> float | None:
        """Value of the newest point not beyond ``step``; None if there is none."""
        index = bisect_right(self.steps, step) - 1
        return self.values[index] if index >= 0 else None

    def least_positive(self) -> float | None:
        """Least finite value above 0, for a logarithmic axis; None if there is none."""
        return min(
            filter(lambda value: 0 < value < math.inf, itertools.chain(self._raw.lows, self.values)), default=None
        )

    def bounds(
        self, first: int | None = None, last: int | None = None, *, smooth: bool = False
    ) -> tuple[float, float] | None:
        """Least and greatest finite value between two steps (inclusive); None if there is none."""
        extremes = self._smooth if smooth else self._raw
        low, high = extremes.of(*self._slice(first, last))
        return (low, high) if low <= high else None

    def bucket(
        self, width: int, first: int | None = None, last: int | None = None, *, smooth: bool = False
    ) -> list[Bucket]:
        """Reduce the curve between two steps to pixel columns; every extreme survives.

        Args:
            width: Columns; the step ``first`` falls into column 0, ``last`` into column ``width - 1``.
            first: Step at the left edge; the first one by default. It need not have a value.
            last: Step at the right edge; the last one by default.
            smooth: Use the moving average instead of the values.

        Returns:
            The columns with a finite value, from left to right.
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
        """(column, begin, end) of every column with a point."""
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
    """A valid weight, which leaves some to the present: at 1 the average would never move."""
    return min(max(smoothing, 0.0), 0.9999)


def _seconds(values: list[float]) -> list[float]:
    """The second value of each pair, and the last one if it has no partner."""
    return values[1::2] + (values[-1:] if len(values) % 2 else [])


class _Extremes:
    """Least and greatest finite value of any slice of points."""

    def __init__(self) -> None:
        self.lows: list[float] = []
        self._highs: list[float] = []
        # Running extremes, so that points can be dropped without reading the others.
        self._low_so_far: list[float] = []
        self._high_so_far: list[float] = []

    def append(self, value: float) -> None:
        finite = math.isfinite(value)
        low, high = (value, value) if finite else (math.inf, -math.inf)
        self.lows.append(low)
        self._highs.append(high)
        least, greatest = (self._low_so_far[-1], self._high_so_far[-1]) if self._low_so_far else (low, high)
        self._low_so_far.append(low if low < least else least)
        self._high_so_far.append(high if high > greatest else greatest)

    def widen(self, value: float) -> None:
        """Merge one more value into the last point."""
        # Neither comparison holds for NaN; infinities are left out like it.
        if value < self.lows[-1] and value != -math.inf:
            self.lows[-1] = value
            self._low_so_far[-1] = min(self._low_so_far[-1], value)
        if value > self._highs[-1] and value != math.inf:
            self._highs[-1] = value
            self._high_so_far[-1] = max(self._high_so_far[-1], value)

    def halve(self) -> None:
        """Merge pairs of neighbors."""
        self.lows = list(map(min, self.lows[::2], self.lows[1::2] + self.lows[-1:]))
        self._highs = list(map(max, self._highs[::2], self._highs[1::2] + self._highs[-1:]))
        self._low_so_far, self._high_so_far = _seconds(self._low_so_far), _seconds(self._high_so_far)

    def truncate(self, keep: int) -> None:
        for values in (self.lows, self._highs, self._low_so_far, self._high_so_far):
            del values[keep:]

    def of(self, begin: int, end: int) -> tuple[float, float]:
        """Extremes of a slice; (inf, -inf) if it has no finite value."""
        if begin <= 0 and end >= len(self.lows) and self.lows:
            return self._low_so_far[-1], self._high_so_far[-1]
        return min(self.lows[begin:end], default=math.inf), max(self._highs[begin:end], default=-math.inf)
