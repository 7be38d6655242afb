"""Key bar, the last line of the screen: the panes as tabs behind their keys, and at most five keys beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from textual.content import Content
from textual.style import Style
from textual.widget import Widget
from textual.widgets import Input, TextArea

from tui.keys import Key
from tui.shell import shell_of
from tui.widgets.strips import component_classes, style_of


class KeyBar(Widget):
    """Key hints from the key table; hints that do not fit are left out.

    Over the panes it has the keys of the screen that covers them, since those of the panes do not work there.
    """

    DEFAULT_CSS = style_of("KeyBar")
    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(DEFAULT_CSS)

    # Clickable text would be drawn as links.
    auto_links = False

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._current = ""
        self._offers_tiles = False
        self._turn = ""
        self._written: tuple[tuple[str, str], ...] = ()

    def show(self, current: str, *, offers_tiles: bool, turn: str = "") -> None:
        """Update the bar.

        Args:
            current: The focused pane.
            offers_tiles: There is room for more panes.
            turn: The other layout of the two visible panes; empty unless there are two.
        """
        shown = (current, offers_tiles, turn)
        if shown != (self._current, self._offers_tiles, self._turn):
            self._current, self._offers_tiles, self._turn = shown
            self.refresh()

    def on_mount(self) -> None:
        """Follow the focus, the bindings and the screens, because an input or a screen has keys of its own."""
        self.watch(self.screen, "focused", self._focus_moved, init=False)
        self.screen.bindings_updated_signal.subscribe(self, self._keys_changed)
        self.app.screen_change_signal.subscribe(self, self._keys_changed)

    def _focus_moved(self) -> None:
        self.refresh()

    def _keys_changed(self, _: object) -> None:
        if self._offered() != self._written:
            self.refresh()

    def _offered(self) -> tuple[tuple[str, str], ...]:
        """Keys of the screen over the panes, or of the focused text input; empty without either."""
        top, focused = self.app.screen, self.screen.focused
        if top is not self.screen:
            return tuple(getattr(top, "footer_keys", ()))
        if not isinstance(focused, (Input, TextArea)):
            return ()
        offered: tuple[tuple[str, str], ...] = getattr(
            focused, "footer_keys", (("esc", "leaves"), ("enter", "accepts"))
        )
        palette = shell_of(self).keys["app.palette"]
        return (*offered, (palette.display, palette.description))

    def render(self) -> Content:
        """The panes and the keys of the app, or the keys of the screen over the panes or the focused text input."""
        keys = shell_of(self).keys
        key_style = Style.from_styles(self.get_component_styles("key-bar--key"))
        self._written = self._offered()
        if self._written:
            # Numbers and letters are text.
            return self._line([Content.assemble((key, key_style), " ", what) for key, what in self._written])
        parts = [self._tabs([key for key in keys.scope("app") if key.pane], key_style)]
        if self._offers_tiles:
            parts.append(self._entry(keys["app.tile"], key_style))
        elif self._turn:
            parts.append(self._entry(keys["app.turn"], key_style, self._turn))
        width = self.size.width - 1
        used = sum(cell_len(part.plain) + 2 for part in parts)
        for key in keys.scope("app"):
            if key.footer:
                entry = self._entry(key, key_style)
                used += cell_len(entry.plain) + 2
                if used <= width:
                    parts.append(entry)
        return self._line(parts)

    @staticmethod
    def _line(parts: Sequence[Content]) -> Content:
        return Content(" ") + Content("  ").join(parts)

    def _tabs(self, panes: Sequence[Key], style: Style) -> Content:
        """The panes in the order of their keys, the current one marked."""
        current = Style.from_styles(self.get_component_styles("key-bar--current"))
        numbers = [key.display for key in panes]
        in_order = numbers == [str(number) for number in range(1, len(numbers) + 1)]
        tabs = [
            Content.styled(key.description, (current if key.pane == self._current else Style()) + _click(key))
            for key in panes
        ]
        shown = f"{numbers[0]}-{numbers[-1]}" if in_order else " ".join(numbers)
        return Content.assemble((shown, style), " ", Content(" · ").join(tabs))

    @staticmethod
    def _entry(key: Key, style: Style, text: str = "") -> Content:
        click = _click(key)
        return Content.assemble((key.display, style + click), (f" {text or key.description}", click))


def _click(key: Key) -> Style:
    return Style.from_meta({"@click": key.action})
