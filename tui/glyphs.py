"""Glyphs of charts and bars for terminals with and without Unicode."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Characters of loose points, one for each pattern of dots."""
    eval_mark: str
    probe_mark: str
    """The mark of the loss on the general probe."""
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
    corner_right: str
    """The corner of the horizontal axis and the right vertical one."""
    tick_right: str
    """A tick on the right vertical axis."""
    marks: Mapping[str, str]
    """Marks of the chart by kind (:class:`core.runs.record.history.Mark`); other kinds use ``event_mark``."""

    @property
    def sparse(self) -> int:
        """The bits of every second dot column, for dotted lines; all bits if a cell has one column."""
        dots = range(self.columns * self.rows)
        return sum(1 << dot for dot in dots if self.columns == 1 or dot % self.columns == 0)


def _braille() -> str:
    """Braille patterns, with dots numbered row by row, left to right."""
    bits = (0x01, 0x08, 0x02, 0x10, 0x04, 0x20, 0x40, 0x80)
    return "".join(
        chr(0x2800 + sum(bit for index, bit in enumerate(bits) if pattern >> index & 1)) for pattern in range(256)
    )


_SHAPES = ("│", "─", "└", "┤", "┬", "━", "─", "┊", "┘", "├")
#: Kinds of marks, with their glyphs in Unicode and in ASCII.
_KINDS = ("checkpoint", "warning", "error", "memory", "rollback", "paused", "parked", "going_on", "resumed")
_MARKS, _ASCII_MARKS = dict(zip(_KINDS, "▲!✗▽◀‖■▷▷", strict=True)), dict(zip(_KINDS, "^!xm<=P>>", strict=True))
_QUADRANTS = " ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█"
BRAILLE = GlyphSet("braille", 2, 4, _braille(), _braille(), "◆", "◇", "▼", *_SHAPES, _MARKS)
BLOCK = GlyphSet("block", 2, 2, _QUADRANTS, _QUADRANTS, "◆", "◇", "▼", *_SHAPES, _MARKS)
_ASCII_SHAPES = ("|", "-", "+", "+", "+", "#", ".", ":", "+", "+")
ASCII = GlyphSet("ascii", 1, 2, " ***", " '.:", "o", "g", "v", *_ASCII_SHAPES, _ASCII_MARKS)

GLYPH_SETS = {glyphs.name: glyphs for glyphs in (BRAILLE, BLOCK, ASCII)}
