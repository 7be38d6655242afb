"""Help for the focused pane: its content, its keys, and the keys of the app."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content

from core.paths import config_dir, shown_path
from core.text import one_line
from tui.keys import Key, KeyTable, display_key
from tui.screens.box import OverlayBox
from tui.screens.overlay import Overlay
from tui.widgets.text_block import HangingBlock

NOTES = (
    "Hold shift to select text with the mouse.",
    "In tmux, copying to your clipboard needs 'set -g set-clipboard on'.",
)


class HelpScreen(Overlay[None]):
    """The help screen, built from the keys table with the user's changes.

    Args:
        title: The pane's name.
        about: The content of the pane.
        keys: The key table with the user's changes.
        scope: The pane's scope.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,enter", "dismiss(None)", "close", show=False),
    ]

    def __init__(self, title: str, about: str, keys: KeyTable, scope: str) -> None:
        super().__init__()
        self._title, self._about, self._keys, self._scope = title, about, keys, scope

    def compose(self) -> ComposeResult:
        text = HangingBlock(help_content(self._title, self._about, self._keys, self._scope))
        box = OverlayBox(text, title=f"Help · {self._title}", width=84)
        box.show_keys("j k scroll  esc close")
        yield box


def help_content(title: str, about: str, keys: KeyTable, scope: str) -> Content:
    """The whole help as text."""
    parts: list[Content] = [Content(about)] if about else []
    own = keys.scope(scope)
    if own:
        parts += [Content(""), Content.styled(title, "$primary bold"), *key_lines(own)]
    parts += [Content(""), Content.styled("Everywhere", "$primary bold"), *key_lines(keys.scope("app"))]
    parts += [Content(""), Content.styled("Good to know", "$primary bold"), *(Content(note) for note in NOTES)]
    parts.append(Content(f"Your own keys: {one_line(shown_path(config_dir() / 'keymap.toml'), 200)}"))
    return Content("\n").join(parts[1:] if not about else parts)


def key_lines(keys: list[Key]) -> list[Content]:
    """A help line for each key."""
    shown = [(" ".join(display_key(part.strip()) for part in key.keys.split(",")), key) for key in keys]
    width = max(len(text) for text, _ in shown)
    return [
        Content.assemble((f"  {text.ljust(width)}", "bold"), f"   {key.help or key.description}") for text, key in shown
    ]
