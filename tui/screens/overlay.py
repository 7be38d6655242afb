"""The base of the screens that cover the panes."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import ClassVar

from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen, ScreenResultType

from tui.keys import bindings

#: Bindings of a dialog with several inputs.
INPUT_BINDINGS = (
    Binding("escape", "dismiss(None)", "leave", show=False),
    # At once: keys typed after them are the text of the next line.
    Binding("tab,down", "app.focus_next", show=False, priority=True),
    Binding("shift+tab,up", "app.focus_previous", show=False, priority=True),
)


def key_line(keys: Sequence[tuple[str, str]]) -> Content:
    """A line of keys, each with what it does."""
    return Content("   ").join(Content.assemble((key, "$primary bold"), f" {what}") for key, what in keys)


class Overlay(ModalScreen[ScreenResultType]):
    """A screen that is dismissed once: a key typed after the dismissing one may still reach it, and is no answer."""

    DEFAULT_CSS = "Overlay { align: center middle; }"

    TAKES_TEXT: ClassVar[bool] = False
    """Whether keys are text even before an input has the focus."""
    SCOPE: ClassVar[str] = ""
    """Its scope in the table of keys; empty where it has none."""

    BINDINGS: ClassVar[list[BindingType]] = [binding for binding in bindings("app") if binding.id == "app.picture"]

    _is_left = False

    @property
    def known_keys(self) -> Container[str]:
        """The keys that do something here."""
        return self.active_bindings

    def post_from_thread(self, message: Message) -> None:
        """Post a message from a thread with a job of the screen; nothing where the screen has been left meanwhile."""
        if self.is_attached:
            self.post_message(message)

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Dismiss the screen with a result, at most once: a second call would answer twice and pop the screen below."""
        if self._is_left:
            return AwaitComplete()
        self._is_left = True
        return super().dismiss(result)
