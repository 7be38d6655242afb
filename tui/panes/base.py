"""The base class of the panes: a title and key hints in the border, whatever text is in them."""

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

    _shown_title = ""

    @cached_property
    def shell(self) -> Shell:
        """The app, as its shell."""
        return shell_of(self)

    @property
    def keys(self) -> KeyTable:
        """The key table with the user's changes."""
        return self.shell.keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While a text is being entered, keys that write text run no action."""
        if yields_to_text(action, self.keys) and takes_text(self.screen.focused):
            return False
        return super().check_action(action, parameters)

    def watch_has_focus(self, _has_focus: bool) -> None:
        """Restyle the pane alone: no style of what is in it depends on whether the pane itself has the focus."""
        self.app.stylesheet.update_nodes([self])

    def set_title(self, *parts: str) -> None:
        """Set the title: its parts with dots between them, external text sanitized, empty parts left out."""
        title = " · ".join(one_line(part, 120) for part in parts if part)
        # Writing to the border repaints the whole pane.
        if title != self._shown_title:
            self._shown_title = title
            self.border_title = Content(title)

    def set_hints(self, identities: Sequence[str]) -> None:
        """Show the most needed keys in the lower border."""
        self.border_subtitle = Content(self.keys.hints(identities))

    def prefer_focus(self, widget: Widget) -> None:
        """Choose the widget that is focused with the pane; it is focused now if the pane has the focus."""
        had_focus = self.has_focus_within
        for other in self.query(".-first-focus"):
            other.remove_class("-first-focus")
        widget.add_class("-first-focus")
        if had_focus:
            widget.focus()
