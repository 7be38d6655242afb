"""Meters: bars, and the marks in them."""

from __future__ import annotations

from tui.glyphs import GlyphSet


def bar(fraction: float, width: int, glyphs: GlyphSet) -> tuple[str, str]:
    """The filled and the empty part of a bar in cells; a fraction outside 0 to 1 is clamped."""
    # NaN is drawn as empty.
    full = round(min(fraction, 1.0) * width) if fraction > 0 else 0
    return glyphs.bar_full * full, glyphs.bar_empty * (width - full)


def tick_place(fraction: float | None, width: int) -> int | None:
    """The cell of a bar in which a mark stands; None where there is none, or it would be beyond the bar."""
    return min(int(fraction * width), width - 1) if fraction is not None and 0 < fraction <= 1 else None
