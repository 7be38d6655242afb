"""The screen of a report: its lines, wrapped to the terminal's width, to scroll through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content

from core.text import one_line, sanitize
from tui.screens.box import OverlayBox
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

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss(None)", show=False),
    ]

    def __init__(self, title: str, render: Callable[[int], Sequence[str]]) -> None:
        super().__init__()
        self._title, self._render_lines = one_line(title, 100), render
        self._text = TextBlock()

    def compose(self) -> ComposeResult:
        """The lines; they are written once the width is known."""
        box = OverlayBox(self._text, title=self._title, width=_WIDEST, tight=True)
        box.show_keys("j k scroll  pgup pgdn page  g G ends  esc close")
        yield box

    def on_resize(self) -> None:
        """Wrap the lines for the width."""
        room = self.query_one(OverlayBox).room
        # The box may be there before what it holds.
        self._text.show(Content("\n").join(sanitize(line) for line in self._render_lines(room)))
