"""Virtual list of rows on Textual's Line API: only visible rows are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.strip import Strip

from core.text import steady
from tui.datasets.view import RowCells
from tui.widgets.lists.cursor_list import CursorList
from tui.widgets.strips import component_classes, fit, mark_matches, style_of

#: Marks of readable rows with a problem, with their style.
_MARKS = {"drop": ("✗", "problem"), "warn": ("!", "warning")}
#: Right-aligned columns of numbers.
_COUNTS = ("tok", "learned", "loss")
#: Cells of the narrow columns, which come first.
_NARROW = {"tok": 5, "learned": 7, "loss": 5, "label": 5}
#: Minimum cells of a text column; the last columns are left out to keep it.
_LEAST = 12


RowSource = Callable[[int, int], Sequence[RowCells]]
"""``source(start, count)``: the cells of a window of rows, in time independent of ``start``."""


class RowList(CursorList):
    """A virtual list of the rows of a data set."""

    DEFAULT_CSS = style_of("RowList")

    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(DEFAULT_CSS)

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.columns: tuple[str, ...] = ()
        self.term = ""
        self._source: RowSource | None = None
        self._window: tuple[int, Sequence[RowCells]] = (0, ())
        self._highest = 0

    def show(self, source: RowSource | None, columns: Sequence[str], count: int = 0) -> None:
        """Show other rows, with the cursor on the first.

        Args:
            source: The source of the cells; None shows nothing.
            columns: Headings of the cells, without the row number.
            count: The number of rows so far; set ``count`` when there are more.
        """
        self._source, self.columns, self.term = source, tuple(columns), ""
        self.show_part(count)

    def show_part(self, count: int, cursor: int = 0, highest: int = 0) -> None:
        """Show other rows of the same source.

        Args:
            count: The number of rows.
            cursor: The new index of the cursor.
            highest: The highest row number; 0 if the list has all rows.
        """
        self._window = (0, ())
        self.set_reactive(CursorList.count, count)
        self._highest = highest
        self.virtual_size = Size(self.size.width, count + 1)
        self.scroll_to(y=0, animate=False, immediate=True)
        self.cursor = cursor
        self.refresh()
        # The scroll range is known after the layout.
        self.call_after_refresh(self._scroll_to_cursor)

    def highlight(self, term: str) -> None:
        """Highlight all visible matches of a text, ignoring case; an empty text clears them."""
        self.term = steady(term).lower()
        self.refresh()

    def invalidate(self) -> None:
        """Read the visible rows again."""
        self._window = (0, ())
        self.refresh()

    def move_page(self, direction: int) -> None:
        """Move the cursor by a screenful."""
        self.cursor += direction * max(1, self.size.height - 2)

    def watch_count(self, before: int, count: int) -> None:
        """Adapt the scrollable area, and read rows that were missing."""
        super().watch_count(before, count)
        if before - self._window[0] < self.size.height:
            self.invalidate()
        if before == 0 and count:
            self.cursor = 0

    def _row(self, index: int) -> RowCells | None:
        """Cells of a row, read a screenful at a time."""
        start, rows = self._window
        if not start <= index < start + len(rows):
            if self._source is None:
                return None
            start = round(self.scroll_y)
            rows = self._source(start, min(max(self.size.height, 1), self.count - start))
            self._window = (start, rows)
        return rows[index - start] if 0 <= index - start < len(rows) else None

    def draw_header(self, width: int) -> Strip:
        """Headings of the columns."""
        return self._draw(("#", *self.columns), width, self.get_component_rich_style("row-list--header"), "  ")

    def draw_row(self, index: int, width: int) -> Strip:
        """Cells of a row, or its problem."""
        row = self._row(index)
        if row is None:
            return Strip.blank(width, self.rich_style)
        at_cursor = index == self.cursor
        base = self.get_component_rich_style("row-list--cursor") if at_cursor else self.rich_style
        number = str(row.number or index + 1)
        if row.problem:
            problem = self.get_component_rich_style("row-list--problem", partial=True)
            return self._draw((number, f"✗ {row.problem}"), width, base + problem, "▸ " if at_cursor else "  ")
        return self._draw((number, *row.cells), width, base, "▸" if at_cursor else " ", row.mark)

    def _widths(self, width: int, cells: int) -> list[int]:
        """Cell widths: the row number as wide as the last, and the second of two texts two fifths of the rest."""
        number = max(3, len(str(self._highest or self.count)))
        narrow = [_NARROW[name] for name in self.columns if name in _NARROW] if cells == len(self.columns) + 1 else []
        rest = width - number - 2 - sum(size + 2 for size in narrow)
        texts = cells - 1 - len(narrow)
        while texts > 1 and rest - 2 * texts < texts * _LEAST:
            texts -= 1
        rest -= 2 * texts
        share = rest * 3 // 5 if texts == 2 else rest // max(texts, 1)
        before = [share] * (texts - 1)
        return [number, *narrow, *before, max(rest - sum(before), 0)]

    def _draw(self, cells: Sequence[str], width: int, style: Style, cursor: str, level: str | None = None) -> Strip:
        widths = self._widths(width, len(cells))
        number = cells[0].rjust(widths[0])
        muted = self.get_component_rich_style("row-list--number", partial=True)
        match = style + self.get_component_rich_style("row-list--match", partial=True)
        segments = [Segment(cursor, style)]
        if level is not None:
            mark, name = _MARKS.get(level, (" ", "number"))
            segments.append(Segment(mark, style + self.get_component_rich_style(f"row-list--{name}", partial=True)))
        segments.append(Segment(number, style + muted))
        for place, (text, size) in enumerate(zip(cells[1:], widths[1:], strict=False)):
            segments.append(Segment("  ", style))
            if len(cells) == len(self.columns) + 1 and self.columns[place] in _NARROW:
                aligned = text.rjust(size) if self.columns[place] in _COUNTS else text
                segments.append(Segment(fit(aligned, size), style + muted))
                continue
            segments += mark_matches(fit(steady(text), size), self.term, style, match)
        return Strip(segments).adjust_cell_length(width, style)
