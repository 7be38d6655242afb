"""Glyphs of charts and bars, for terminals with and without Unicode."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GlyphSet:
    """A set of glyphs. A cell's character is looked up by the bits of its dots, row by row, left to right."""

    name: str
    columns: int
    """Dots across a cell."""
    rows: int
    """Dots down a cell."""
    line: str
    """Characters of a line, one for each pattern of dots."""
    points: str
    """Characters of loose points, likewise."""
    eval_mark: str
    probe_mark: str
    """Of the loss on the general probe."""
    event_mark: str
    vertical: str
    horizontal: str
    corner: str
    tick_left: str
    """A tick on the vertical axis."""
    tick_down: str
    """A tick on the horizontal axis."""
    bar_full: str
    bar_empty: str
    bar_tick: str
    """A mark on a bar."""


def _braille() -> str:
    """Braille patterns in the order of our bits: row by row, left to right."""
    bits = (0x01, 0x08, 0x02, 0x10, 0x04, 0x20, 0x40, 0x80)
    return "".join(
        chr(0x2800 + sum(bit for index, bit in enumerate(bits) if pattern >> index & 1)) for pattern in range(256)
    )


BRAILLE = GlyphSet("braille", 2, 4, _braille(), _braille(), "◆", "◇", "▼", "│", "─", "└", "┤", "┬", "━", "─", "┊")
_QUADRANTS = " ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█"
BLOCK = GlyphSet("block", 2, 2, _QUADRANTS, _QUADRANTS, "◆", "◇", "▼", "│", "─", "└", "┤", "┬", "━", "─", "┊")
ASCII = GlyphSet("ascii", 1, 2, " ***", " '.:", "o", "g", "v", "|", "-", "+", "+", "+", "#", ".", ":")

GLYPH_SETS = {glyphs.name: glyphs for glyphs in (BRAILLE, BLOCK, ASCII)}
