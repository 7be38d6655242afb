"""Theme picker: the theme under the cursor is previewed at once, and ``esc`` restores the old theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui.screens.overlay import Overlay
from tui.widgets.strips import style_of


class ThemePicker(Overlay[str]):
    """A list of themes; returns the chosen theme's name, or nothing.

    Args:
        names: The themes.
        current: The theme in use.
    """

    DEFAULT_CSS = style_of("ThemePicker")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", "back", show=False),
        Binding("j", "move(1)", show=False),
        Binding("k", "move(-1)", show=False),
    ]

    def __init__(self, names: Sequence[str], current: str) -> None:
        super().__init__()
        self._names, self._before = names, current

    def compose(self) -> ComposeResult:
        themes = OptionList(*(Option(Content(name), id=name) for name in self._names))
        themes.border_title = "Theme"
        themes.border_subtitle = "enter keep  esc back"
        yield themes

    def on_mount(self) -> None:
        """Start at the theme in use."""
        themes = self.query_one(OptionList)
        themes.highlighted = self._names.index(self._before) if self._before in self._names else 0

    @on(OptionList.OptionHighlighted)
    def _preview(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_id is not None:
            self.app.theme = event.option_id

    @on(OptionList.OptionSelected)
    def _keep(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id or "")

    def action_move(self, by: int) -> None:
        """Move the cursor to the next or previous theme."""
        themes = self.query_one(OptionList)
        if by > 0:
            themes.action_cursor_down()
        else:
            themes.action_cursor_up()

    def action_back(self) -> None:
        """Restore the old theme and close."""
        self.app.theme = self._before
        self.dismiss("")
