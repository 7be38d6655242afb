"""The box of a screen that covers the panes: a frame around a text that scrolls."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget

from tui.screens.scrolling import Way, scroll

_KEYS: dict[str, Way] = {
    "j,down": "down",
    "k,up": "up",
    "pagedown,space": "page_down",
    "pageup": "page_up",
    "g,home": "home",
    "G,end": "end",
}


class OverlayBox(VerticalScroll, inherit_bindings=False):
    """The box of an overlay: its title is in the upper border, its keys are in the lower one, its content scrolls.

    Args:
        children: Its content.
        title: Its title, external text in it sanitized.
        width: Columns at most, those of border, padding and scrollbar included.
        tight: Whether the padding is small, for lines of code and tables.
    """

    DEFAULT_CSS = """
    OverlayBox {
        max-width: 100%; height: auto; max-height: 94%; padding: 1 2;
        border: round $border-focus; border-title-style: bold; border-subtitle-color: $muted;
        background: $surface; scrollbar-size-vertical: 1;
        &.-tight { padding: 0 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(keys, f"scroll('{way}')", show=False) for keys, way in _KEYS.items()
    ]

    def __init__(self, *children: Widget, title: str, width: int, tight: bool = False) -> None:
        super().__init__(*children, classes="-tight" if tight else None)
        self.styles.width = self._width = width
        # Border, padding, and the scrollbar.
        self._frame = 5 if tight else 7
        self.border_title = Content(title)

    @property
    def room(self) -> int:
        """Columns of a line in it."""
        return min(self._width, self.app.size.width) - self._frame

    def show_keys(self, keys: str | Content) -> None:
        """Say in the border what keys do now."""
        self.border_subtitle = Content(keys) if isinstance(keys, str) else keys

    def action_scroll(self, way: Way) -> None:
        """Scroll by a line or a page, or to an end, at once."""
        scroll(self, way)
