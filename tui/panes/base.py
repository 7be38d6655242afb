"""The base of the panes: a title and key hints in the border, whatever text is in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget

from core.text import one_line
from tui.keys import KeyTable, yields_to_text
from tui.shell import Shell, shell_of
from tui.widgets.forms.ask_bar import takes_text


class Pane(Vertical):
    """A pane of the main screen; the slot it stands in draws its border."""

    DEFAULT_CSS = """
    Pane { height: 1fr; padding: 0 1; background: $background; }
    """

    HELP: ClassVar[str] = ""
    """A sentence or two for the help screen."""

    @cached_property
    def shell(self) -> Shell:
        """The app."""
        return shell_of(self)

    @property
    def keys(self) -> KeyTable:
        """The keys as the user has them."""
        return self.shell.keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Where something is being written, the keys that begin it are text."""
        if yields_to_text(action, self.keys) and takes_text(self.screen.focused):
            return False
        return super().check_action(action, parameters)

    def set_title(self, *parts: str) -> None:
        """Write the title: its parts with dots between them, external text made harmless, empty parts left out."""
        self.border_title = Content(" · ".join(one_line(part, 120) for part in parts if part))

    def set_hints(self, identities: Sequence[str]) -> None:
        """Write the most needed keys in the lower border."""
        self.border_subtitle = Content(self.keys.hints(identities))

    def prefer_focus(self, widget: Widget) -> None:
        """Make a widget the one that gets the keys when the pane does; it gets them now if the pane has them."""
        had_focus = self.has_focus_within
        for other in self.query(".-first-focus"):
            other.remove_class("-first-focus")
        widget.add_class("-first-focus")
        if had_focus:
            widget.focus()
