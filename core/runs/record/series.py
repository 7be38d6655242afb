"""Chart series: a curve over steps, reduced to pixel columns for drawing, as it is or smoothed.

Values that are not finite are gaps: they interrupt the curve, are listed, and never touch bounds or smoothing.

A curve never has more points than a screen can resolve. If it would, neighbors are merged into one point, which keeps
their extremes and their sum. All is kept in arrays: 64 bytes a point.

Smoothing is a local linear regression. A moving average lags behind a falling curve; here the window is centered on
each point, and the fitted line extrapolates at both ends, so nothing lags. The window is narrow at the beginning, where
a loss falls steeply, and grows with the distance from there and with the run.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from statistics import median
from typing import NamedTuple

#: Steps below which a curve is shown as it is.
FEWEST = 30
#: Half a window, as a share of the distance from the first point, and its greatest share of the whole run.
GROWTH, SHARE = 0.4, 1 / 11
#: Steps by which the greatest window grows: the picture of a run that goes on is extended and seldom redrawn.
_LADDER = 1.25
#: Values are clamped to this, positive or negative, so that no sum is infinite.
GREATEST = 1e290


class _Point(NamedTuple):
    """The mean of ``weight`` values around a step."""

    step: float
    value: float
    weight: float


def greatest_half_window(steps: float) -> float:
    """Half of the widest window of a run, in steps; it grows in jumps. 0 for a run that is too short."""
    return _LADDER ** math.floor(math.log(steps * SHARE, _LADDER)) if steps >= FEWEST else 0.0


def smooth(points: Sequence[_Point], first: float, last: float) -> list[float]:
    """Smoothed values, one for each point.

    Args:
        points: Points by rising step, each with a finite value.
        first: First step of the run.
        last: Last step of the run so far.
    """
    widest = greatest_half_window(last - first + 1)
    if not widest:
        return [point.value for point in points]
    steps = [point.step for point in points]
    weights = [point.weight for point in points]
    values = [min(max(point.value, -GREATEST), GREATEST) for point in points]
    found = []
    for step in steps:
        half = min((step - first) * GROWTH, widest)
        begin, end = bisect_left(steps, step - half), bisect_right(steps, step + half)
        # The window reaches to the next points outside, whose weight would be 0.
        half += max(steps[min(end, len(steps) - 1)] - step - half, step - half - steps[max(begin - 1, 0)], 1.0)
        offsets = [other - step for other in steps[begin:end]]
        # The Epanechnikov kernel: the nearer a point, the more it counts.
        kernel = [
            weight * (1.0 - (offset / half) ** 2) for weight, offset in zip(weights[begin:end], offsets, strict=True)
        ]
        found.append(_fit(offsets, values[begin:end], kernel))
    return found


def _fit(offsets: Sequence[float], values: Sequence[float], weights: Sequence[float]) -> float:
    """The value at offset 0 of the least-squares line."""
    total = sum(weights)
    weighted = list(map(mul, weights, values))
    mean: float = sum(weighted) / total
    if len(offsets) < 3:
        return mean
    center: float = sum(map(mul, weights, offsets)) / total
    centered = [offset - center for offset in offsets]
    spread: float = sum(map(mul, weights, map(mul, centered, centered)))
    slope: float = sum(map(mul, centered, weighted)) / spread if spread > 0 else 0.0
    return mean - slope * center


#: Most points kept; at this number, pairs of neighbors are merged.
MOST_POINTS = 1 << 16
#: Most columns that a curve is smoothed in.
SMOOTH_COLUMNS = 180
#: Greatest step, positive or negative, that an array holds.
GREATEST_STEP = (1 << 63) - 1


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
    """True if the curve is uninterrupted from the previous bucket."""


class Series:
    """Values by step, steps ascending."""

    def __init__(self) -> None:
        self.steps: array[int] = array("q")
        """Step of each point; of a merged point, the first step."""
        self.values: array[float] = array("d")
        """Values as appended, NaN and infinities included; of a merged point, the newest finite one."""
        self.gaps: array[int] = array("q")
        """The newest steps whose value is not finite."""
        # The same values with each gap as the neutral element of min and max, so that both run at C speed.
        self._extremes = _Extremes()
        # Sum and number of the finite values of each point.
        self._sums: array[float] = array("d")
        self._counts: array[int] = array("q")
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
        step = min(max(step, -GREATEST_STEP), GREATEST_STEP)
        if self._last_step is not None and step <= self._last_step:
            self.truncate(step)
        self._last_step = step
        finite = math.isfinite(value)
        part = min(max(value, -GREATEST), GREATEST) if finite else 0.0
        if not finite:
            self.gaps.append(step)
            if len(self.gaps) > 2 * MOST_POINTS:
                del self.gaps[:-MOST_POINTS]
        if self._filled < self._stride and self.steps:
            self._filled += 1
            self._merge(value, part)
            return
        self.steps.append(step)
        self.values.append(value)
        self._sums.append(part)
        self._counts.append(int(finite))
        self._extremes.append(value)
        self._filled = 1
        if len(self.steps) >= MOST_POINTS:
            self._halve()

    def gather(self, step: int, value: float) -> None:
        """Append a value, or merge it into the newest point if that is of the same step, for several measurements
        during a step: the point keeps its extremes, and takes the newest finite value."""
        if step != self._last_step or not self.steps:
            self.append(step, value)
            return
        self._merge(value, min(max(value, -GREATEST), GREATEST) if math.isfinite(value) else 0.0)

    def _merge(self, value: float, part: float) -> None:
        """Merge a value into the newest point; ``part`` is its share of the sum."""
        finite = math.isfinite(value)
        if finite or not math.isfinite(self.values[-1]):
            self.values[-1] = value
        self._sums[-1] += part
        self._counts[-1] += finite
        self._extremes.widen(value)

    def _halve(self) -> None:
        """Merge pairs of neighbors."""
        is_even = len(self.steps) % 2 == 0
        values = self.values
        self.values = array(
            "d",
            [
                second if math.isfinite(second) else first
                for first, second in zip(values[::2], values[1::2] + values[-1:], strict=False)
            ],
        )
        self.steps = self.steps[::2]
        sums, counts = self._sums, self._counts
        self._sums = array("d", map(sum, itertools.zip_longest(sums[::2], sums[1::2], fillvalue=0.0)))
        self._counts = array("q", map(sum, itertools.zip_longest(counts[::2], counts[1::2], fillvalue=0)))
        self._extremes.halve()
        self._filled += self._stride if is_even else 0
        self._stride *= 2

    def truncate(self, step: int) -> None:
        """Drop the points from ``step`` on."""
        if self._last_step is None or self._last_step < step:
            return
        keep = bisect_left(self.steps, step)
        del self.steps[keep:], self.values[keep:], self._sums[keep:], self._counts[keep:]
        del self.gaps[bisect_left(self.gaps, step) :]
        self._extremes.truncate(keep)
        # Some steps of a merged point may have been dropped; their values are unknown.
        self._last_step = (self.steps[-1] if self._stride == 1 else step - 1) if keep else None
        self._stride = self._stride if keep else 1
        self._filled = self._stride

    def at(self, step: int) -> float | None:
        """Value of the newest point not beyond ``step``; None if there is none."""
        index = self.index_at(step)
        return None if index is None else self.values[index]

    def index_at(self, step: int) -> int | None:
        """Index of the newest point not beyond ``step``; None if there is none."""
        index = bisect_right(self.steps, step) - 1
        return index if index >= 0 else None

    def least_positive(self, first: int | None = None, last: int | None = None) -> float | None:
        """Least finite value above 0 between two steps (inclusive), for a logarithmic axis; None if there is none."""
        start, stop = self._slice(first, last)
        values = itertools.chain(self._extremes.lows[start:stop], self.values[start:stop])
        return min(filter(lambda value: 0 < value < math.inf, values), default=None)

    def bounds(self, first: int | None = None, last: int | None = None) -> tuple[float, float] | None:
        """Least and greatest finite value between two steps (inclusive); None if there is none."""
        low, high = self._extremes.of(*self._slice(first, last))
        return (low, high) if low <= high else None

    def mean(self, first: int | None = None, last: int | None = None) -> float | None:
        """Mean of the finite values between two steps (inclusive); None if there is none."""
        start, stop = self._slice(first, last)
        count = sum(self._counts[start:stop])
        return sum(self._sums[start:stop]) / count if count else None

    def settled(self) -> tuple[float, int] | None:
        """Median of the last finite values, without the very first, and their number: a tenth of all, 5 to 50. None if
        there are none. A single batch may be half empty, or odd."""
        values = [value for value in self.values[1:] if math.isfinite(value)]
        last = values[-min(max(len(values) // 10, 5), 50) :]
        return (median(last), len(last)) if last else None

    def bucket(self, width: int, first: int | None = None, last: int | None = None) -> list[Bucket]:
        """Reduce the curve between two steps to pixel columns; every extreme survives.

        Args:
            width: Columns; the step ``first`` falls into column 0, ``last`` into column ``width - 1``.
            first: Step at the left edge; the first one by default. It need not have a value.
            last: Step at the right edge; the last one by default.

        Returns:
            The columns with a finite value, from left to right.
        """
        values, found, joined = self.values, [], False
        for x, begin, end in self._split(width, first, last):
            low, high = self._extremes.of(begin, end)
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

    @property
    def is_smoothed(self) -> bool:
        """True if the curve is long enough to be smoothed."""
        return bool(self.steps) and greatest_half_window(self._last - self.steps[0] + 1) > 0

    def smooth_bucket(self, width: int, first: int | None = None, last: int | None = None) -> list[Bucket]:
        """The smoothed curve in pixel columns, as :meth:`bucket`; of a short curve, the curve itself.

        In a wide chart, not every column has a bucket: between two, a smooth curve is a straight line.
        """
        if not self.is_smoothed:
            return self.bucket(width, first, last)
        columns = min(width, SMOOTH_COLUMNS)
        scale = (width - 1) / (columns - 1) if columns > 1 else 1.0
        places: list[tuple[int, bool]] = []
        points: list[_Point] = []
        joined = False
        for x, begin, end in self._split(columns, first, last):
            if count := sum(self._counts[begin:end]):
                middle = (self.steps[begin] + self.steps[end - 1]) / 2
                points.append(_Point(middle, sum(self._sums[begin:end]) / count, count))
                places.append((round(x * scale), joined and math.isfinite(self.values[begin])))
            joined = bool(count) and math.isfinite(self.values[end - 1])
        smoothed = smooth(points, self.steps[0], self._last)
        return [
            Bucket(x, value, value, value, value, is_joined)
            for (x, is_joined), value in zip(places, smoothed, strict=True)
        ]

    @property
    def _last(self) -> int:
        return self._last_step if self._last_step is not None else 0

    def _split(self, width: int, first: int | None, last: int | None) -> list[tuple[int, int, int]]:
        """(column, begin, end) of every column with a point between two steps."""
        start, stop = self._slice(first, last)
        if start >= stop or width < 1:
            return []
        left = self.steps[0] if first is None else first
        span = (self.steps[-1] if last is None else last) - left
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


def _seconds(values: array[float]) -> array[float]:
    """The second value of each pair, and the last one if it has no partner."""
    return values[1::2] + values[len(values) - len(values) % 2 :]


class _Extremes:
    """Least and greatest finite value of any slice of points."""

    def __init__(self) -> None:
        self.lows: array[float] = array("d")
        self._highs: array[float] = array("d")
        # Running extremes, so that points can be dropped without reading the others.
        self._low_so_far: array[float] = array("d")
        self._high_so_far: array[float] = array("d")

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
        self.lows = array("d", map(min, self.lows[::2], self.lows[1::2] + self.lows[-1:]))
        self._highs = array("d", map(max, self._highs[::2], self._highs[1::2] + self._highs[-1:]))
        self._low_so_far, self._high_so_far = _seconds(self._low_so_far), _seconds(self._high_so_far)

    def truncate(self, keep: int) -> None:
        for values in (self.lows, self._highs, self._low_so_far, self._high_so_far):
            del values[keep:]

    def of(self, begin: int, end: int) -> tuple[float, float]:
        """Extremes of a slice; (inf, -inf) if it has no finite value."""
        if begin <= 0 and end >= len(self.lows) and self.lows:
            return self._low_so_far[-1], self._high_so_far[-1]
        return min(self.lows[begin:end], default=math.inf), max(self._highs[begin:end], default=-math.inf)


@dataclass(frozen=True)
class Metric:
    """A curve of a run."""

    name: str
    label: str
    attribute: str
    """Name of the curve in a :class:`~core.runs.record.history.RunHistory`."""
    is_sparse: bool = False
    """True if its few values are measured at evaluations."""
    unit: str = ""
    is_noisy: bool = False
    """True if each value is of a single step's rows, so that only a smoothed curve shows the trend."""
    has_log_axis: bool = True
    """True if a logarithmic axis makes sense: not for temperatures, whose zero is arbitrary."""

    def read(self, history: object) -> Series:
        """Curve of a run's history."""
        curve: Series = getattr(history, self.attribute)
        return curve


def _by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


#: Metrics of training by name, in the order in which a key turns through them.
METRICS = _by_name(
    Metric("loss", "training loss", "loss", is_noisy=True),
    Metric("eval_loss", "eval loss", "eval_loss", is_sparse=True),
    Metric("exact_match", "exact match", "exact_match", is_sparse=True),
    Metric("probe_loss", "probe loss", "probe_loss", is_sparse=True),
    Metric("learning_rate", "learning rate", "learning_rate"),
    Metric("grad_norm", "gradient norm", "grad_norm", is_noisy=True),
    Metric("tokens_per_second", "tokens/s", "throughput", unit="tok/s", is_noisy=True),
)
#: Metrics of the first device, likewise.
DEVICE_METRICS = _by_name(
    Metric("temperature", "temperature", "temperature", unit="°C", has_log_axis=False),
    Metric("power", "power", "power", unit="W"),
    Metric("memory", "VRAM", "device_memory", unit="GB"),
)
#: All curves with a value at each step or each measurement, in the order in which a key turns through them.
CURVES: Mapping[str, Metric] = {
    name: metric for name, metric in (METRICS | DEVICE_METRICS).items() if not metric.is_sparse
}
