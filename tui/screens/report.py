"""The screen of a report: its lines, wrapped to the terminal's width, to scroll through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from core.text import one_line, sanitize
from tui.screens.overlay import Overlay
from tui.widgets.text_block import TextBlock

#: Columns beyond which lines are hard to read.
_WIDEST = 124


class ReportScreen(Overlay[None]):
    """A report that is read and closed.

    Args:
        title: Its subject.
        render: Its lines for a number of columns; external text in them is sanitized here.
    """

    DEFAULT_CSS = """
    ReportScreen { align: center middle; background: $background 60%; }
    ReportScreen > VerticalScroll {
        width: 124; max-width: 98%; height: auto; max-height: 94%; padding: 0 1;
        border: round $border-focus; border-title-style: bold; border-subtitle-color: $muted;
        background: $surface; scrollbar-size-vertical: 1;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss(None)", show=False),
        Binding("j,down", "scroll('down')", show=False),
        Binding("k,up", "scroll('up')", show=False),
        Binding("pagedown,space", "scroll('page_down')", show=False),
        Binding("pageup", "scroll('page_up')", show=False),
        Binding("g,home", "scroll('home')", show=False),
        Binding("G,end", "scroll('end')", show=False),
    ]

    def __init__(self, title: str, render: Callable[[int], Sequence[str]]) -> None:
        super().__init__()
        self._title, self._render_lines = one_line(title, 100), render

    def compose(self) -> ComposeResult:
        """The lines; they are written once the width is known."""
        with VerticalScroll() as box:
            box.border_title = Content(self._title)
            box.border_subtitle = Content("j k scroll  pgup pgdn page  g G ends  esc close")
            yield TextBlock()

    def on_resize(self) -> None:
        """Wrap the lines for the width, less border, padding and scrollbar."""
        room = min(_WIDEST, self.app.size.width * 98 // 100) - 5
        self.query_one(TextBlock).show(Content("\n".join(sanitize(line) for line in self._render_lines(room))))

    def action_scroll(self, where: str) -> None:
        """Scroll by a line or a page, or to an end."""
        box = self.query_one(VerticalScroll)
        ways = {
            "down": box.scroll_down,
            "up": box.scroll_up,
            "page_down": box.scroll_page_down,
            "page_up": box.scroll_page_up,
            "home": box.scroll_home,
            "end": box.scroll_end,
        }
        ways[where](animate=False)
