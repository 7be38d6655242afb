"""A one-line input that holds no control character."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input

from core.text import one_line


class SafeInput(Input):
    """A compact :class:`textual.widgets.Input` that sanitizes pasted and set text, and posts ``esc``."""

    DEFAULT_CSS = """
    SafeInput {
        height: 1;
        border: none;
        padding: 0;
        background: $surface;
        &:focus { background: $panel; border: none; }
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "cancel", show=False)]

    #: Key hints for the key bar while this has the focus.
    footer_keys: ClassVar[tuple[tuple[str, str], ...]] = (("esc", "cancels"), ("enter", "accepts"))

    class Cancelled(Message):
        """The input has been left with ``esc``."""

        def __init__(self, control: SafeInput) -> None:
            super().__init__()
            self._control = control

        @property
        def control(self) -> SafeInput:
            """The input that was left."""
            return self._control

    def __init__(
        self,
        value: str = "",
        *,
        placeholder: str = "",
        id: str | None = None,  # noqa: A002
        classes: str | None = None,
    ) -> None:
        super().__init__(
            one_line(value), placeholder=placeholder, id=id, classes=classes, compact=True, select_on_focus=False
        )
        self.cursor_blink = False

    def validate_value(self, value: str) -> str:
        """Sanitize the value to one line of harmless characters, wherever it comes from."""
        return one_line(value)

    def _on_paste(self, event: events.Paste) -> None:
        text = one_line(event.text.strip("\r\n"))
        if text:
            self.replace(text, *self.selection) if not self.selection.is_empty else self.insert_text_at_cursor(text)
        event.stop()
        event.prevent_default()

    def take_key(self, event: events.Key) -> bool:
        """Take a key that came while this had no focus as typed text; whether it is a character."""
        if not event.is_printable or event.character is None:
            return False
        event.stop()
        self.replace(event.character, *self.selection)
        return True

    def action_cancel(self) -> None:
        """Post :class:`Cancelled` on ``esc``."""
        self.post_message(self.Cancelled(self))
