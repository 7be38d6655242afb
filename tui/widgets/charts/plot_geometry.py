"""Geometry of a line chart in a terminal: scales, ticks, and dots packed into characters. No widgets.

Positions are in dots, several to a character cell; row 0 is at the top.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.runs.record.series import Bucket
from tui.glyphs import GlyphSet

#: Maximum absolute value on an axis, and the smallest positive value on a log axis.
GREATEST, LEAST = 1e300, 1e-300
#: The axis of steps extends to the total after this fraction of the run, and always in runs of few steps.
FORESIGHT, FEWEST_STEPS = 8, 60.0


@dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high``, linear or logarithmic; ``low < high``, and both positive on a log axis.

    A value beyond an end is placed at that end.
    """

    low: float
    high: float
    log: bool = False

    def fraction(self, value: float) -> float | None:
        """Position of a value from 0 (low) to 1 (high); None if it cannot be placed on the axis."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(value)
        else:
            low, high = self.low, self.high
            if math.isinf(high - low):
                low, high, value = low / 2, high / 2, value / 2
        # Both ends may be equal as floats.
        return min(max((min(value, high) - low) / (high - low), 0.0), 1.0) if high - low > 0 else 0.0

    def dot(self, value: float, dots: int) -> int | None:
        """The nearest of ``dots`` dots from the low end; None if the value cannot be placed on the axis."""
        fraction = self.fraction(value)
        return None if fraction is None else round(fraction * (dots - 1))


@dataclass(frozen=True)
class ValueAxis:
    """A y axis with round labels at evenly spaced rows."""

    scale: Scale
    ticks: tuple[tuple[int, float], ...]
    """Row, counted from the bottom, and value of each tick."""


def value_axis(values: Iterable[float], rows: int, dots: int, log: bool = False) -> ValueAxis:
    """Choose an axis for all finite values (on a log axis, all positive values) that wastes few rows.

    Labels are a round value and a whole number of rows apart. On a log axis a decade is a whole number of rows, with
    labels at 1, 2 and 5 if there is room.

    Args:
        values: The values; values that are not finite are ignored.
        rows: Rows of the plot.
        dots: Dots per row.
        log: Use a logarithmic axis if any value is positive.
    """
    finite = [min(max(value, -GREATEST), GREATEST) for value in values if math.isfinite(value)]
    positive = [max(value, LEAST) for value in finite if value > 0]
    log = log and bool(positive)
    if log:
        low, high = math.log10(min(positive)), math.log10(max(positive))
        low, high = (low, high) if high - low > 1e-3 else (low - 0.05, high + 0.05)
    else:
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        # Equal values, or nearly equal for their size, still need a range.
        least = max(abs(low), abs(high)) * 1e-6 or 1e-9
        low, high = (
            (low, high) if high - low > least else (max(low - least, 0.0) if low >= 0 else low - least, high + least)
        )
    grids = [
        _grid(low, high, distance, apart, rows, dots)
        for apart in _label_distances(rows)
        for distance in (_LOG_DISTANCES if log else _round_values((high - low) / rows))
    ]
    best = max((grid for grid in grids if grid is not None), key=lambda grid: grid.score, default=None)
    if best is None:
        return ValueAxis(Scale(10.0**low if log else low, 10.0**high if log else high, log), ())
    ticks = [(row, row + best.first) for row in range(rows) if (row + best.first) % best.apart == 0]
    return ValueAxis(
        Scale(_power(best.low), _power(best.high), log=True) if log else Scale(best.low, best.high),
        tuple((row, _tick(place // best.apart, best.distance, log)) for row, place in ticks),
    )


#: Distances between labels on a log axis, in decades; a third means labels at 1, 2, 5.
_LOG_DISTANCES = (1 / 3, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)


@dataclass(frozen=True)
class _Grid:
    """A candidate for an axis."""

    distance: float
    """Distance between labels; in decades on a log axis, like ``low`` and ``high``."""
    apart: int
    """Rows between labels."""
    first: int
    """Index of the bottom row, counted from value 0."""
    low: float
    """Value of the lowest dot; ``high`` is the highest."""
    high: float
    score: float


def _grid(low: float, high: float, distance: float, apart: int, rows: int, dots: int) -> _Grid | None:
    """Axis with a given distance between labels; None if the values do not fit."""
    row = distance / apart
    dot = row / dots
    # A label marks the middle of its row.
    middle = dots // 2
    first = math.floor((low + middle * dot) / row + 1e-9)
    bottom = first * row - middle * dot
    top = bottom + (rows * dots - 1) * dot
    if high > top + dot / 2 or not bottom < top < math.inf:
        return None
    used = (high - low) / (top - bottom)
    labels = len(range(-first % apart, rows, apart))
    return _Grid(distance, apart, first, bottom, top, used + 0.05 * min(labels, 5))


def _label_distances(rows: int) -> Iterable[int]:
    """Candidates for the rows between labels."""
    return range(max(-(-rows // 8), 1 if rows < 5 else 2), max((rows - 1) // 2, 2) + 1)


def _round_values(least: float) -> list[float]:
    """Round distances, starting near a value."""
    power = 10.0 ** math.floor(math.log10(least))
    return [factor * power for factor in (1, 2, 2.5, 5, 10, 20, 25, 50, 100, 200)]


def _tick(count: int, distance: float, log: bool) -> float:
    """The value of a label."""
    if not log:
        return float(f"{count * distance:.12g}")
    if distance < 1:
        return (1, 2, 5)[count % 3] * _power(count // 3)
    return _power(count * distance)


def _power(exponent: float) -> float:
    return float(10.0 ** min(max(exponent, -307.0), 307.0))


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 3, 4, 5, 6, 8 times a power of ten that is at least ``value``, a positive number."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 3, 4, 5, 6, 8, 10) if factor * power >= value * (1 - 1e-12))


def step_window(first: float, last: float, total: int, *, is_over: bool = False) -> Scale:
    """Range of the axis of steps: up to the total, but early in a long run only a part of it.

    The end moves in a few jumps, so that the chart is extended rather than redrawn.
    """
    start = min(first, 1.0) if first > 0 else first
    seen = max(last - start, 1.0)
    end = start + max(nice_ceiling(seen * 2.5), FEWEST_STEPS)
    if total > start and last <= total and (is_over or total <= FEWEST_STEPS or seen >= (total - start) / FORESIGHT):
        end = float(total)
    elif total > start and last <= total:
        end = min(end, float(total))
    return Scale(start, max(end, last, start + 1.0))


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` round values in a range, 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / max(most, 1)
    if most < 1 or not sys.float_info.min <= raw < math.inf:
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        if count <= most:
            return [(first + index) * step for index in range(count)]
    return []


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels with just enough digits, the same for all: ``0.0 0.5 1.0``; large values as ``20k``."""
    if not values:
        return []
    if any(value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6) for value in values):
        return [_scientific(value) for value in values]
    if min(values) > 0 and max(values) / min(values) >= 100 and any(value < 1 for value in values):
        return [f"{value:g}" for value in values]
    if all(value == int(value) for value in values):
        return [_thousands(int(value)) for value in values]
    for digits in range(1, 7):
        if all(abs(round(value, digits) - value) <= 1e-9 * max(abs(value), 1e-3) for value in values):
            return [f"{value:.{digits}f}" for value in values]
    return [f"{value:.3g}" for value in values]


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}"


def _thousands(value: int) -> str:
    return f"{value // 1000}k" if value >= 10_000 and value % 1000 == 0 else str(value)


@dataclass
class DotGrid:
    """Grid of dots in cells; ``bits[row][column]`` is the pattern of a cell.

    Args:
        width: Cells across.
        height: Cells down.
        glyphs: The glyphs of the dots.
    """

    width: int
    height: int
    glyphs: GlyphSet
    bits: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.bits = [[0] * self.width for _ in range(self.height)]

    @property
    def columns(self) -> int:
        """Number of dots across."""
        return self.width * self.glyphs.columns

    @property
    def rows(self) -> int:
        """Number of dots down."""
        return self.height * self.glyphs.rows

    def span(self, x: int, low: int, high: int) -> None:
        """Set all dots of a column from ``low`` to ``high``."""
        if not 0 <= x < self.columns:
            return
        low, high = max(min(low, high), 0), min(max(low, high), self.rows - 1)
        column, across = divmod(x, self.glyphs.columns)
        dots, wide = self.glyphs.rows, self.glyphs.columns
        top, bottom = self.rows - 1 - high, self.rows - 1 - low
        # Cell by cell, because a band of noise has many dots.
        for row in range(top // dots, bottom // dots + 1):
            pattern = 0
            for down in range(max(top - row * dots, 0), min(bottom - row * dots, dots - 1) + 1):
                pattern |= 1 << (down * wide + across)
            self.bits[row][column] |= pattern

    def line(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Set the dots of a straight line from left to right (``x0 <= x1``), without holes."""
        run = x1 - x0
        if run == 0:
            self.span(x0, y0, y1)
            return
        previous = y0
        for x in range(x0, x1 + 1):
            y = round(y0 + (y1 - y0) * (x - x0) / run)
            # A steep step is drawn in the new column, starting next to the old height.
            start = y if abs(y - previous) <= 1 else previous + (1 if y > previous else -1)
            self.span(x, start, y)
            previous = y


def draw_line(grid: DotGrid, buckets: Sequence[Bucket], scale: Scale) -> None:
    """Draw buckets as a line, broken between buckets that are not joined."""
    previous: tuple[int, int] | None = None
    for item in buckets:
        first, last = scale.dot(item.first, grid.rows), scale.dot(item.last, grid.rows)
        low, high = scale.dot(item.low, grid.rows), scale.dot(item.high, grid.rows)
        if first is None or last is None or low is None or high is None:
            previous = None
            continue
        if previous is not None and item.joined:
            grid.line(*previous, item.x, first)
        grid.span(item.x, low, high)
        previous = (item.x, last)
