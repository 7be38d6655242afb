"""View of a run's log that follows the end until it is scrolled away."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.widgets.strips import component_classes, style_of

if TYPE_CHECKING:
    from core.runs.record.history import LogLine

#: Maximum number of lines; the newest are kept.
LINES = 2000
#: Columns of the time of day and the space after it.
_TIME_WIDTH = 9


class LogView(ScrollView, can_focus=True):
    """A log with a line per event: time of day, a sign for warnings and errors, and a text. Long lines are cut, or
    wrapped while the log is unfolded."""

    DEFAULT_CSS = style_of("LogView")
    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(DEFAULT_CSS)
    #: Signs before a line, so that its level does not depend on color.
    SIGNS: ClassVar[dict[str, str]] = {"warning": "! ", "error": "✗ "}

    class Cut(Message):
        """Lines in view begin or cease to be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False
        """True while a line in view is cut."""
        self._lines: deque[LogLine] = deque(maxlen=LINES)
        self._folded: Counter[str] = Counter()
        self.following = True
        """True while the view follows the end."""
        self._unfolded = False
        self._pieces: list[tuple[LogLine, str, bool]] = []

    def toggle_unfolded(self) -> None:
        """Toggle between wrapping and cutting long lines."""
        self._unfolded = not self._unfolded
        self._resized()

    @property
    def _room(self) -> int:
        """Columns for a text."""
        return max((self.scrollable_content_region.width or self.size.width) - _TIME_WIDTH, 1)

    def _look_for_cut(self) -> None:
        """Tell when lines in view begin or cease to be cut."""
        first = self.scroll_offset.y
        seen = () if self._unfolded else list(self._lines)[first : first + self.scrollable_content_region.height]
        is_cut = any(cell_len(self._text(line)) > self._room for line in seen)
        if is_cut != self.is_cut:
            self.is_cut = is_cut
            self.post_message(self.Cut())

    def _text(self, line: LogLine) -> str:
        return self.SIGNS.get(line.level, "") + line.text

    def _wrap(self) -> None:
        """Wrap an unfolded log into pieces: the line, a part of its text, and True for the first part."""
        self._pieces = [
            (line, piece.plain, number == 0)
            for line in (self._lines if self._unfolded else ())
            for number, piece in enumerate(Content(self._text(line)).wrap(self._room))
        ]

    def clear(self) -> None:
        """Remove all lines and follow the end again."""
        self._lines.clear()
        self._folded.clear()
        self.following = True
        self._resized()

    def append(self, lines: Iterable[LogLine]) -> None:
        """Append lines; the newest of lines of a kind that folds replaces the earlier ones."""
        fresh = list(lines)
        for line in fresh:
            self._lines.append(self._fold(line) if line.fold else line)
        if fresh:
            self._resized()

    def _fold(self, line: LogLine) -> LogLine:
        """A line with the count of its kind; removes the one before."""
        self._folded[line.fold] += 1
        if (count := self._folded[line.fold]) == 1:
            return line
        before = next((other for other in reversed(self._lines) if other.fold == line.fold), None)
        if before is not None:
            self._lines.remove(before)
        return replace(line, text=f"{count} {line.fold}s, newest {line.text.removeprefix(line.fold).lstrip()}")

    def follow(self) -> None:
        """Scroll to the end and follow it."""
        self.following = True
        self.scroll_end(animate=False, force=True)

    @property
    def line_count(self) -> int:
        """Number of lines."""
        return len(self._lines)

    def _resized(self) -> None:
        self._wrap()
        self.virtual_size = Size(self.size.width, len(self._pieces) if self._unfolded else len(self._lines))
        self.refresh()
        if self.following:
            self.scroll_end(animate=False, immediate=True, force=True)
        self._look_for_cut()

    def on_resize(self) -> None:
        """Keep the end in view."""
        if self._unfolded:
            self._resized()
        if self.following:
            self.scroll_end(animate=False, immediate=True, force=True)
        self._look_for_cut()

    def watch_scroll_y(self, old: float, new: float) -> None:
        """Stop following when scrolled away from the end; resume when scrolled back."""
        super().watch_scroll_y(old, new)
        # A move up can still be at the end after a resize or with a shorter log.
        if new >= self.max_scroll_y:
            self.following = True
        elif new < old:
            self.following = False
        self._look_for_cut()

    def render_line(self, y: int) -> Strip:
        """A line of the log."""
        index = y + self.scroll_offset.y
        width = self.scrollable_content_region.width
        if index >= (len(self._pieces) if self._unfolded else len(self._lines)):
            return Strip.blank(width, self.rich_style)
        line, text, is_first = (
            self._pieces[index] if self._unfolded else (self._lines[index], self._text(self._lines[index]), True)
        )
        style = self.rich_style
        if line.level in self.SIGNS:
            style = self.get_component_rich_style(f"log-view--{line.level}")
        time_style: Style = self.get_component_rich_style("log-view--time")
        clock = line.clock if is_first else " " * len(line.clock)
        if len(clock) + 1 + cell_len(text) > width:
            text = set_cell_size(text, max(width - len(clock) - 2, 0)) + "…"
        strip = Strip([Segment(clock, time_style), Segment(" ", self.rich_style), Segment(text, style)])
        return strip.adjust_cell_length(width, self.rich_style)
