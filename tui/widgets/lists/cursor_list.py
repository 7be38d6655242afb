"""List with a cursor, drawn line by line on Textual's Line API below a fixed header."""

from __future__ import annotations

from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip


class CursorList(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows with a cursor; the pane binds the keys, and a subclass draws the header and the rows."""

    cursor = reactive(0, always_update=True, repaint=False)
    """Index of the row under the cursor."""
    count = reactive(0)
    """Number of rows in the list so far."""

    class Moved(Message):
        """The cursor has moved, or its row has changed."""

    class Opened(Message):
        """The row under the cursor has been double-clicked."""

    def draw_header(self, width: int) -> Strip:
        """The header in so many cells."""
        raise NotImplementedError

    def draw_row(self, index: int, width: int) -> Strip:
        """A row in so many cells."""
        raise NotImplementedError

    def move(self, rows: int) -> None:
        """Move the cursor by a number of rows."""
        self.cursor += rows

    def validate_cursor(self, cursor: int) -> int:
        """Clamp the cursor to the rows."""
        return max(0, min(cursor, self.count - 1))

    def watch_cursor(self, before: int, cursor: int) -> None:
        """Keep the cursor in view, post the move, and repaint only the two rows."""
        self._scroll_to_cursor()
        for row in {before, cursor}:
            self.refresh_row(row)
        if self.count:
            self.post_message(self.Moved())

    def watch_count(self, _before: int, count: int) -> None:
        """Adapt the scrollable area."""
        self.virtual_size = Size(self.size.width, count + 1)

    def on_resize(self) -> None:
        """Keep the cursor in view in the new size."""
        self.virtual_size = Size(self.size.width, self.count + 1)
        # The scroll range is known after the layout.
        self.call_after_refresh(self._scroll_to_cursor)

    def _scroll_to_cursor(self) -> None:
        top, body = round(self.scroll_y), self.size.height - 1
        if body >= 1 and not top <= self.cursor < top + body:
            y = self.cursor if self.cursor < top else self.cursor - body + 1
            self.scroll_to(y=y, animate=False, immediate=True)

    def refresh_row(self, index: int) -> None:
        """Repaint a row, if it is in view."""
        y = index - round(self.scroll_y) + 1
        if 1 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        """The header, or a row."""
        width = self.scrollable_content_region.width
        index = round(self.scroll_y) + y - 1
        if width < 1:
            return Strip.blank(0)
        if y == 0:
            return self.draw_header(width)
        return self.draw_row(index, width) if index < self.count else Strip.blank(width, self.rich_style)

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the clicked row, and open it on a double click."""
        index = round(self.scroll_y) + event.y - 1
        if event.y >= 1 and index < self.count:
            self.cursor = index
            if event.chain == 2:
                self.post_message(self.Opened())
