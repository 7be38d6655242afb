"""Small figures of block characters: bar, sparkline, histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.units import format_count
from tui.glyphs import GlyphSet

if TYPE_CHECKING:
    from core.analysis.result import Bucket


def bar(fraction: float, width: int, glyphs: GlyphSet) -> tuple[str, str]:
    """Filled and empty part of a bar; the fraction is clamped to 0 to 1."""
    # NaN compares false and is drawn as empty.
    full = round(min(fraction, 1.0) * width) if fraction > 0 else 0
    return glyphs.bar_full * full, glyphs.bar_empty * (width - full)


def tick_place(fraction: float | None, width: int) -> int | None:
    """The cell of a tick in a bar; None for no tick, or a tick outside the bar."""
    return min(int(fraction * width), width - 1) if fraction is not None and 0 < fraction <= 1 else None


_EIGHTHS, _ASCII = "▁▂▃▄▅▆▇█", "_.-~=+*#"


def sparkline(values: Sequence[float], width: int, glyphs: GlyphSet) -> str:
    """Values as bars between their minimum and maximum; values that are not finite leave gaps.

    Args:
        values: The values; more values than cells are thinned out.
        width: Maximum number of cells.
        glyphs: Eighths of a cell, or ASCII characters.
    """
    if width < 1 or not values:
        return ""
    last = len(values) - 1
    cells = min(len(values), width)
    shown = [values[round(place * last / max(cells - 1, 1))] for place in range(cells)]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return " " * cells
    low, high = min(finite), max(finite)
    bars = _ASCII if glyphs.name == "ascii" else _EIGHTHS
    return "".join(bars[_level(value, low, high, len(bars))] if math.isfinite(value) else " " for value in shown)


def _level(value: float, low: float, high: float, levels: int) -> int:
    # Halved, so that the difference of the largest floats is finite.
    span = high / 2 - low / 2
    return min(int((value / 2 - low / 2) / span * levels), levels - 1) if span > 0 else 0


_COLUMN_EIGHTHS = " ▁▂▃▄▅▆▇█"


def draw_histogram(buckets: Sequence[Bucket], width: int, height: int) -> list[str]:
    """Lines of a histogram, with an axis of the lengths below it.

    Args:
        buckets: The bars.
        width: Cells of a line.
        height: Lines of the bars, without the axis and its numbers.
    """
    if not buckets or height < 1:
        return []
    top = max(bucket.count for bucket in buckets)
    label = format_count(top)
    bar = max(1, min(4, (width - len(label) - 1) // len(buckets)))
    shown = list(buckets)[: max(1, (width - len(label) - 1) // bar)]
    lines = []
    for level in range(height, 0, -1):
        margin = label if level == height else "0" if level == 1 and height > 1 else ""
        cells = []
        for bucket in shown:
            filled = bucket.count * height * 8 / top if top else 0.0
            # A bar with a small count stays visible.
            eighths = max(1 if bucket.count and level == 1 else 0, min(8, round(filled - (level - 1) * 8)))
            cells.append(_COLUMN_EIGHTHS[eighths] * (bar - 1 if bar > 1 else 1) + (" " if bar > 1 else ""))
        lines.append(f"{margin.rjust(len(label))}┤{''.join(cells)}".rstrip())
    pad = " " * len(label)
    lines.append(f"{pad}└{'─' * (bar * len(shown))}")
    lines.append(f"{pad} {_ticks(shown, bar)} tokens")
    return lines


def _ticks(buckets: Sequence[Bucket], bar: int) -> str:
    """Axis labels: the lower end of a bar, under every few bars."""
    texts = [format_count(bucket.low) for bucket in buckets]
    apart = -(-(max(map(len, texts)) + 2) // bar)
    line = ""
    for place in range(0, len(texts), apart):
        line = line.ljust(place * bar) + texts[place]
    return line
