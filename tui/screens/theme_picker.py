"""Theme picker: the theme under the cursor is previewed at once, and ``esc`` restores the old theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import OptionList

from tui.screens.overlay import Overlay
from tui.widgets.lists.choice_list import PointedList
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
    ]

    def __init__(self, names: Sequence[str], current: str) -> None:
        super().__init__()
        self._names, self._before = names, current

    def compose(self) -> ComposeResult:
        themes = PointedList()
        themes.border_title = "Theme"
        themes.border_subtitle = "/ find  enter keep  esc back"
        yield themes

    def on_mount(self) -> None:
        """Start at the theme in use."""
        themes = self.query_one(PointedList)
        themes.fill([Content(name) for name in self._names])
        themes.highlighted = self._names.index(self._before) if self._before in self._names else 0

    @on(OptionList.OptionHighlighted)
    def _preview(self, event: OptionList.OptionHighlighted) -> None:
        self.app.theme = self._names[event.option_index]

    def take(self) -> None:
        """Keep the theme under the cursor."""
        place = self.query_one(PointedList).highlighted
        self.dismiss(self._names[place] if place is not None else "")

    def action_back(self) -> None:
        """Restore the old theme and close."""
        self.app.theme = self._before
        self.dismiss("")
