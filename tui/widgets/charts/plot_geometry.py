"""The geometry of a line chart in a terminal: scales, ticks, and dots packed into characters. No widget in here.

Positions are in dots, several of which share a character cell; row 0 is at the top.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.runs.series import Bucket
from tui.glyphs import GlyphSet

#: Maximum of an axis on either side of 0, and the least positive value on a logarithmic one.
GREATEST, LEAST = 1e300, 1e-300


@dataclass(frozen=True)
class Scale:
    """An axis from ``low`` to ``high``, linear or logarithmic; ``low < high``, and both positive on a log axis.

    A value beyond an end is placed at that end.
    """

    low: float
    high: float
    log: bool = False

    def fraction(self, value: float) -> float | None:
        """The position of a value, 0 at the low end and 1 at the high one; None where it is not on the axis."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(value)
        else:
            low, high = self.low, self.high
        # Ends that are equal as floats are one.
        return min(max((min(value, high) - low) / (high - low), 0.0), 1.0) if high - low > 0 else 0.0

    def dot(self, value: float, dots: int) -> int | None:
        """The nearest of ``dots`` dots, counted from the low end, ends included; None where it is not on the axis."""
        fraction = self.fraction(value)
        return None if fraction is None else round(fraction * (dots - 1))


def value_scale(values: Iterable[float], log: bool = False) -> Scale:
    """An axis that holds all finite values (on a log axis: all positive ones) with a little air.

    Args:
        values: The shown values; values that are not finite do not count.
        log: Whether a logarithmic axis is wanted; it becomes linear when no value is positive.
    """
    finite = [min(max(value, -GREATEST), GREATEST) for value in values if math.isfinite(value)]
    positive = [max(value, LEAST) for value in finite if value > 0]
    if log and positive:
        low, high = min(positive), max(positive)
        factor = min(max(math.exp((math.log(high) - math.log(low)) * 0.04), 1.02), 1e6)
        return Scale(low / factor, high * factor, log=True)
    if not finite:
        return Scale(0.0, 1.0)
    low, high = min(finite), max(finite)
    # Never so little that it makes no difference to the values.
    air = (
        max((high - low) * 0.02, max(abs(low), abs(high)) * 1e-9, LEAST) if low < high else max(abs(high) * 0.05, 1e-9)
    )
    # Bounds on a coarse grid: a value a little beyond the others then leaves the rest of the picture where it is.
    grid = nice_ceiling((high - low + 2 * air) / 25)
    bottom, top = math.floor((low - air) / grid) * grid, math.ceil((high + air) / grid) * grid
    # A loss of 0 is the floor; an axis that reaches below it only looks wrong.
    return Scale(max(bottom, 0.0) if low >= 0 else bottom, top)


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 3, 4, 5, 6, 8 times a power of ten that is not below ``value`` (positive)."""
    power = 10.0 ** math.floor(math.log10(value))
    for factor in (1, 2, 3, 4, 5, 6, 8, 10):
        if factor * power >= value * (1 - 1e-12):
            return factor * power
    return 10 * power


def step_window(first: float, last: float, total: int) -> Scale:
    """The range of steps on the axis: up to the total, but never so far ahead that the steps done are a sliver.

    The end moves in a few jumps only, so that the picture is mostly extended rather than redrawn.
    """
    start = min(first, 1.0) if first > 0 else first
    seen = max(last - start, 1.0)
    end = start + max(nice_ceiling(seen * 1.25), 10.0)
    if total > start:
        end = min(end, float(total)) if last <= total else end
    return Scale(start, max(end, last, start + 1.0))


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) in a range, at most a number of them."""
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


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Ticks of a log axis, at most ``most`` of them: powers of ten, with 2 and 5 between them in a short range."""
    if most < 1 or not 0 < low < high:
        return []
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if 1 < len(inside) <= most:
            return inside
    powers = [10.0**power for power in range(first, last + 1) if low <= 10.0**power <= high]
    if len(powers) >= 2:
        return powers[:: math.ceil(len(powers) / most)]
    return nice_ticks(low, high, most)


def ticks(scale: Scale, most: int) -> list[float]:
    """Ticks along a scale: round values, at most a number of them."""
    return log_ticks(scale.low, scale.high, most) if scale.log else nice_ticks(scale.low, scale.high, most)


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of ticks, with as many digits as distinguish them, all alike: ``0.0 0.5 1.0``; large ones as ``2k``."""
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
    """A grid of dots in cells; ``bits[row][column]`` is the pattern of a cell.

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

    def set(self, x: int, y: int) -> None:
        """Set a dot; ``y`` counts from the bottom, and dots outside are ignored."""
        if 0 <= x < self.columns and 0 <= y < self.rows:
            column, across = divmod(x, self.glyphs.columns)
            row, down = divmod(self.rows - 1 - y, self.glyphs.rows)
            self.bits[row][column] |= 1 << (down * self.glyphs.columns + across)

    def span(self, x: int, low: int, high: int) -> None:
        """Set all dots of a column from ``low`` to ``high``."""
        for y in range(min(low, high), max(low, high) + 1):
            self.set(x, y)

    def line(self, x0: int, y0: int, x1: int, y1: int) -> None:
        """Set the dots of a straight line from left to right (``x0 <= x1``), without holes."""
        run = x1 - x0
        if run == 0:
            self.span(x0, y0, y1)
            return
        previous = y0
        for x in range(x0, x1 + 1):
            y = round(y0 + (y1 - y0) * (x - x0) / run)
            # The steep part belongs to the new column, from next to the old height on.
            start = y if abs(y - previous) <= 1 else previous + (1 if y > previous else -1)
            self.span(x, start, y)
            previous = y


def draw_line(grid: DotGrid, buckets: Sequence[Bucket], scale: Scale) -> None:
    """Draw buckets as a line that is broken where they are not joined."""
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


def draw_points(grid: DotGrid, buckets: Sequence[Bucket], scale: Scale) -> None:
    """Draw the extremes of each bucket as loose dots."""
    for item in buckets:
        for value in (item.low, item.high):
            y = scale.dot(value, grid.rows)
            if y is not None:
                grid.set(item.x, y)
