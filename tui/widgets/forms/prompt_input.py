"""The input of a prompt: enter sends it, ``ctrl+n`` breaks the line, up and down recall earlier prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from core.text import sanitize

#: Maximum number of prompts in the history.
HISTORY_LIMIT = 200


class PromptInput(TextArea):
    """A :class:`textual.widgets.TextArea` that grows to a few lines and sends with enter."""

    DEFAULT_CSS = """
    PromptInput {
        height: auto;
        max-height: 6;
        border: none;
        border-left: outer $border;
        padding: 0 1;
        background: $surface;
        scrollbar-size-vertical: 1;
        &:focus { border: none; border-left: outer $border-focus; background: $panel; }
        & .text-area--cursor-line { background: transparent; }
        & .text-area--placeholder { color: $muted; }
    }
    """

    # The parent binds ctrl+y to redo; here it copies the answer, and ctrl+z undoes as before. Its page keys would move
    # in the few lines of the prompt. Not every terminal tells alt+enter or ctrl+j from enter, and so there is ctrl+n.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+y", "copy_answer", "copy", show=False),
        Binding("ctrl+n,ctrl+j,alt+enter,shift+enter", "break_line", "line break", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
    ]

    @dataclass
    class Submitted(Message):
        """Enter has been pressed on a text that is not blank."""

        text: str

    class CopyWanted(Message):
        """Request: copy the last answer."""

    @dataclass
    class PageWanted(Message):
        """Request: scroll the conversation by a page, up (-1) or down (1)."""

        direction: int

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__("", id=id, classes=classes, soft_wrap=True, tab_behavior="focus", show_line_numbers=False)
        self.cursor_blink = False
        self.highlight_cursor_line = False
        self.footer_keys: tuple[tuple[str, str], ...] = (("esc", "leaves the prompt"), ("enter", "sends"))
        """Key hints for the key bar while this has the focus."""
        self._history: list[str] = []
        self._position = 0
        self._unsent = ""

    def remember(self, text: str) -> None:
        """Add a prompt to the history."""
        if not self._history or self._history[-1] != text:
            self._history = [*self._history, text][-HISTORY_LIMIT:]
        self._position = len(self._history)
        self._unsent = ""

    async def _on_key(self, event: events.Key) -> None:
        handled = True
        if event.key == "enter":
            if self.text.strip():
                self.post_message(self.Submitted(self.text))
        elif event.key == "up" and self.cursor_at_first_line and self._position > 0:
            self._recall(-1)
        elif event.key == "down" and self.cursor_at_last_line and self._position < len(self._history):
            self._recall(1)
        else:
            handled = False
        if handled:
            event.stop()
            event.prevent_default()

    def _recall(self, step: int) -> None:
        if self._position == len(self._history):
            self._unsent = self.text
        self._position += step
        at_end = self._position == len(self._history)
        self.load_text(self._unsent if at_end else self._history[self._position])
        self.move_cursor(self.document.end)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.insert(sanitize(event.text).rstrip("\n"))

    def action_paste(self) -> None:
        """Paste what was copied in the app, an answer as the model wrote it, as harmless as what is typed."""
        self.insert(sanitize(self.app.clipboard).rstrip("\n"))

    def action_break_line(self) -> None:
        """Insert a line break."""
        self.insert("\n")

    def action_page(self, direction: int) -> None:
        """Request a page of the conversation from the pane."""
        self.post_message(self.PageWanted(direction))

    def action_copy_answer(self) -> None:
        """Request a copy of the last answer from the pane."""
        self.post_message(self.CopyWanted())
