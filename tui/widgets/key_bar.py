"""Key bar, the last line of the screen: panes by number key, and the most important keys."""

from __future__ import annotations

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
    """Key hints from the key table; hints that do not fit are left out."""

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
        """Follow the focus and the bindings, because a text input has keys of its own."""
        self.watch(self.screen, "focused", self._focus_moved, init=False)
        self.screen.bindings_updated_signal.subscribe(self, self._keys_changed)

    def _focus_moved(self) -> None:
        self.refresh()

    def _keys_changed(self, _: object) -> None:
        offered = self._offered(self.screen.focused)
        if offered != self._written:
            self.refresh()

    @staticmethod
    def _offered(focused: Widget | None) -> tuple[tuple[str, str], ...]:
        """Keys of the focused text input; empty without one."""
        if not isinstance(focused, (Input, TextArea)):
            return ()
        offered: tuple[tuple[str, str], ...] = getattr(
            focused, "footer_keys", (("esc", "leaves"), ("enter", "accepts"))
        )
        return offered

    def render(self) -> Content:
        """The panes by number and the keys of the app, or the keys of the focused text input."""
        keys, focused = shell_of(self).keys, self.screen.focused
        key_style = Style.from_styles(self.get_component_styles("key-bar--key"))
        self._written = self._offered(focused)
        if self._written:
            # Numbers and letters are text.
            parts = [Content.assemble((key, key_style), " ", what) for key, what in self._written]
            return Content(" ") + Content("  ").join([*parts, self._entry(keys["app.palette"], key_style)])
        current_style = Style.from_styles(self.get_component_styles("key-bar--current"))
        parts = []
        for key in keys.scope("app"):
            name = key.id.partition(".")[2]
            if key.action.startswith("app.show_pane"):
                active = name == self._current
                style = current_style if active else key_style
                parts.append(self._entry(key, style, style if active else None))
            elif name == "tile" and self._offers_tiles:
                parts.append(self._entry(key, key_style))
            elif name == "turn" and self._turn:
                parts.append(self._entry(key, key_style, text=self._turn))
        width = self.size.width - 1
        used = sum(cell_len(part.plain) + 2 for part in parts)
        for key in keys.scope("app"):
            if key.footer:
                entry = self._entry(key, key_style)
                used += cell_len(entry.plain) + 2
                if used <= width:
                    parts.append(entry)
        return Content(" ") + Content("  ").join(parts)

    def _entry(self, key: Key, style: Style, text_style: Style | None = None, text: str = "") -> Content:
        click = Style.from_meta({"@click": key.action})
        what = text or key.description
        return Content.assemble((key.display, style + click), (" ", click), (what, (text_style or Style()) + click))
