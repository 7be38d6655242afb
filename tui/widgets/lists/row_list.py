"""Virtual list of rows on Textual's Line API: only visible rows are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from core.text import steady
from tui.datasets.view import RowCells
from tui.widgets.strips import component_classes, fit, mark_matches, style_of

#: Marks of readable rows with a problem, with their style.
_MARKS = {"drop": ("✗", "problem"), "warn": ("!", "warning")}
#: Right-aligned columns of numbers.
_COUNTS = ("tok", "learned")
#: Cells of the narrow columns, which come first.
_NARROW = {"tok": 5, "learned": 7, "label": 5}
#: Minimum cells of a text column; the last columns are left out to keep it.
_LEAST = 12


RowSource = Callable[[int, int], Sequence[RowCells]]
"""``source(start, count)``: the cells of a window of rows, in time independent of ``start``."""


class RowList(ScrollView, can_focus=True, inherit_bindings=False):
    """A virtual list with a cursor and a fixed header; the pane binds the keys."""

    DEFAULT_CSS = style_of("RowList")

    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(DEFAULT_CSS)

    cursor = reactive(0, always_update=True, repaint=False)
    """Index of the row under the cursor."""
    count = reactive(0)
    """Number of rows in the list so far."""

    @dataclass
    class Moved(Message):
        """The cursor has moved, or its row has changed."""

        index: int

    @dataclass
    class Opened(Message):
        """A row has been double-clicked."""

        index: int

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
        self.set_reactive(RowList.count, count)
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

    def move(self, rows: int) -> None:
        """Move the cursor by a number of rows."""
        self.cursor += rows

    def move_page(self, direction: int) -> None:
        """Move the cursor by a screenful."""
        self.cursor += direction * max(1, self.size.height - 2)

    def validate_cursor(self, cursor: int) -> int:
        """Clamp the cursor to the rows."""
        return max(0, min(cursor, self.count - 1))

    def watch_cursor(self, before: int, cursor: int) -> None:
        """Keep the cursor in view, post the move, and repaint only the two rows."""
        self._scroll_to_cursor()
        for row in {before, cursor}:
            y = row - round(self.scroll_y) + 1
            if 1 <= y < self.size.height:
                self.refresh(Region(0, y, self.size.width, 1))
        if self.count:
            self.post_message(self.Moved(cursor))

    def watch_count(self, before: int, count: int) -> None:
        """Adapt the scrollable area, and read rows that were missing."""
        self.virtual_size = Size(self.size.width, count + 1)
        if before - self._window[0] < self.size.height:
            self.invalidate()
        if before == 0 and count:
            self.cursor = 0

    def on_resize(self) -> None:
        """Keep the cursor in view in the new size."""
        self.virtual_size = Size(self.size.width, self.count + 1)
        # The scroll range is known after the layout.
        self.call_after_refresh(self._scroll_to_cursor)

    def _scroll_to_cursor(self) -> None:
        body = self.size.height - 1
        if body < 1:
            return
        top = round(self.scroll_y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + body:
            self.scroll_to(y=self.cursor - body + 1, animate=False, immediate=True)

    def _row(self, index: int, top: int) -> RowCells | None:
        """Cells of a row, read a screenful at a time."""
        start, rows = self._window
        if not start <= index < start + len(rows):
            if self._source is None:
                return None
            count = min(max(self.size.height, 1), self.count - top)
            rows = self._source(top, count)
            start = top
            self._window = (start, rows)
        return rows[index - start] if 0 <= index - start < len(rows) else None

    def render_line(self, y: int) -> Strip:
        """The header, or a row."""
        width = self.scrollable_content_region.width
        if width < 1:
            return Strip.blank(0)
        if y == 0:
            return self._draw(("#", *self.columns), width, self.get_component_rich_style("row-list--header"), "  ")
        top = round(self.scroll_y)
        index = top + y - 1
        if index >= self.count:
            return Strip.blank(width, self.rich_style)
        row = self._row(index, top)
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
            segments.extend(self._marked(fit(steady(text), size), style))
        return Strip(segments).adjust_cell_length(width, style)

    def _marked(self, text: str, style: Style) -> list[Segment]:
        match = style + self.get_component_rich_style("row-list--match", partial=True)
        return mark_matches(text, self.term, style, match)

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the clicked row, and open it on a double click."""
        index = round(self.scroll_y) + event.y - 1
        if event.y >= 1 and index < self.count:
            self.cursor = index
            if event.chain == 2:
                self.post_message(self.Opened(index))
