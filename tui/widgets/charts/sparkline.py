"""Sparklines: a few values as a row of bars, one cell each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tui.glyphs import GlyphSet

_EIGHTHS, _ASCII = "▁▂▃▄▅▆▇█", "_.-~=+*#"


def sparkline(values: Sequence[float], width: int, glyphs: GlyphSet) -> str:
    """Values as bars between the least and the greatest of them; a gap where one is not finite.

    Args:
        values: The values; where there are more than cells, some between are left out.
        width: Most cells.
        glyphs: Bars of eighths of a cell, or ASCII characters in their place.
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
    # Halves, so that the difference of the greatest floats is finite.
    span = high / 2 - low / 2
    return min(int((value / 2 - low / 2) / span * levels), levels - 1) if span > 0 else 0
