"""Base class of the panes, with a title and clickable key hints in the border."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual import events, on
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region
from textual.widget import Widget

from core.text import one_line
from tui.keys import Key, KeyTable, yields_to_text
from tui.panes import pane_spec
from tui.shell import Shell, shell_of
from tui.widgets.forms.ask_bar import KeyQuestion, takes_text
from tui.widgets.strips import fitting

if TYPE_CHECKING:
    from tui.screens.help import HelpScreen

#: Columns of a border around its text; the width assumed for a pane without a size.
_BORDER_WIDTH, _WIDEST = 6, 1000
#: Columns of the name of a file in a title without room.
SHORT_NAME = 24
#: Maximum number of hints, before the key of the help.
_HINTS = 5


class Pane(Vertical):
    """Pane of the main screen; its slot draws the border."""

    DEFAULT_CSS = "Pane { height: 1fr; padding: 0 1; background: $background; }"

    _title: tuple[str, ...] = ()
    _shorter: Sequence[tuple[str, str]] = ()
    _shown_title = ""
    _hints: tuple[tuple[str, str], ...] = ()
    _shown_hints: Content | None = None

    @property
    def scope(self) -> str:
        """Its scope in the key table."""
        ids = (binding.id for binding in self.BINDINGS if isinstance(binding, Binding))
        return next((name.partition(".")[0] for name in ids if name), "")

    @property
    def more_keys(self) -> Sequence[Key]:
        """Keys of other panes that act here now."""
        return ()

    def help_screen(self) -> HelpScreen:
        """The help for what it shows."""
        from tui.screens.help import HelpScreen

        title, acts = pane_spec(self.scope).title, self.shell.can_run
        return HelpScreen(title, self.scope, self.keys, self.scope, acts=acts, more=self.more_keys)

    @cached_property
    def shell(self) -> Shell:
        """The app, as its shell."""
        return shell_of(self)

    @property
    def keys(self) -> KeyTable:
        """The key table with the user's changes."""
        return self.shell.keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable keys that type text while text is being entered."""
        if self.screen.is_active and yields_to_text(action, self.keys) and takes_text(self.screen.focused):
            return False
        return super().check_action(action, parameters)

    def watch_has_focus(self, _has_focus: bool) -> None:
        """Restyle the pane without its content, whose styles do not depend on the pane's focus."""
        self.app.stylesheet.update_nodes([self])

    def set_title(self, *parts: str, shorter: Sequence[tuple[str, str]] = ()) -> None:
        """Set the title: the nonempty parts, sanitized and joined by dots.

        Args:
            parts: The parts.
            shorter: Parts that become shorter, or empty, where the title has no room, the least important first.
        """
        self._title, self._shorter = parts, shorter
        self._fit_title()

    def _fit_title(self) -> None:
        """Show the parts of the title, as short as need be."""
        title = _joined(parts := self._title)
        for long, short in self._shorter:
            if cell_len(title) > self._room:
                title = _joined(parts := tuple(short if part == long else part for part in parts))
        # Writing to the border repaints the whole pane.
        if title != self._shown_title:
            self._shown_title = title
            self.border_title = Content(title)

    @property
    def _room(self) -> int:
        """Columns for a text in the border."""
        return max(self.outer_size.width - _BORDER_WIDTH, 0) or _WIDEST

    def set_hints(self, identities: Sequence[str], more: Sequence[tuple[str, str]] = ()) -> None:
        """Show key hints in the lower border, five at most; the help lists all keys.

        Args:
            identities: The ids of the keys, the most important first.
            more: Hints before them: displayed key and label.
        """
        self.show_hints([*more, *self.keys.named(identities)])

    def show_hints(self, hints: Sequence[tuple[str, str]]) -> None:
        """Show key hints in the lower border: displayed keys with their labels."""
        self._hints = tuple(hints)
        self.fit_hints()

    def offers(self, identity: str) -> bool:  # noqa: ARG002 - for panes that do
        """True if it shows a key that works while another pane has the focus."""
        return False

    def focus_moved(self) -> None:
        """Show which keys work, after the focus has moved within the screen."""
        self.fit_hints()

    def fit_hints(self) -> None:
        """Show the hints that fit; their keys are bright only in the focused pane, where they work."""
        room = self._room
        is_current = self.has_class("-current")
        style = "$foreground bold" if is_current else ""
        more: list[Content] = []
        if is_current and not takes_text(self.screen.focused):
            # It leads to the keys that have no room.
            more = [Content.assemble((self.keys["app.help"].display, style), " more")]
            room -= more[0].cell_length + 2
        hints = fitting(self._hints[:_HINTS], room)
        shown = [Content.assemble((key, style), f" {text}") for key, text in hints]
        line = Content("  ").join([*shown, *more])
        # Writing to the border repaints the whole pane.
        if line != self._shown_hints:
            self._shown_hints = line
            self.border_subtitle = line

    @on(events.Resize)
    def _refit(self) -> None:
        """Fit title and hints to the new width."""
        self._fit_title()
        self.fit_hints()

    def watch_virtual_size(self) -> None:
        """Fit them to the first width: Textual posts no Resize if the region was requested before."""
        self._refit()

    async def on_click(self, event: events.Click) -> None:
        """Run the action of a clicked key hint, in the lower border or in a part with the class ``-hints``."""
        part = event.widget if event.widget is not None and event.widget.has_class("-hints") else self
        # Screen coordinates: clicks on inner widgets arrive here too, with coordinates of that widget.
        column, row = event.screen_x - part.region.x, event.screen_y - part.region.y
        is_border = row == self.outer_size.height - 1
        if isinstance(self.screen.focused, KeyQuestion) or (part is self and not is_border):
            return
        line = part.render_lines(Region(0, row, part.outer_size.width, 1))[0].text
        if (key := self.keys.displayed(self.scope, hint_at(line, column))) is None:
            return
        event.stop()
        if key.scope != "app" and not yields_to_text(key.action, self.keys):
            # Directly, so that an input keeps the focus.
            await self.run_action(key.action)
        else:
            await self.shell.run_key(key)

    def prefer_focus(self, widget: Widget) -> None:
        """Set the widget that gets the pane's focus, and focus it if the pane has the focus."""
        had_focus = self.has_focus_within
        for other in self.query(".-first-focus"):
            other.remove_class("-first-focus")
        widget.add_class("-first-focus")
        if had_focus:
            widget.focus()


def _joined(parts: Sequence[str]) -> str:
    """A title of its nonempty parts."""
    return " · ".join(one_line(part, 120) for part in parts if part)


def hint_at(line: str, column: int) -> str:
    """The displayed key of the hint at a column of a lower border; empty between two hints."""
    for hint in re.finditer(r"[^\s─╰╯]+(?: [^\s─╰╯]+)*", line):
        if hint.start() <= column < hint.end():
            return hint.group().partition(" ")[0]
    return ""
