"""Help for the focused pane or the screen over it: first what the first hour needs, then every key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import tomli
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content

from core.paths import config_dir, shown_path
from core.text import one_line
from tui.keys import SCREENS, Key, KeyTable, display_key
from tui.screens.box import OverlayBox
from tui.screens.overlay import Overlay
from tui.widgets.text_block import HangingBlock

#: Rows of the box on a tall terminal: on a slow line, each takes 200 bytes.
_ROWS = 36

NOTES = (
    "In every list, j k g G move, and / finds an entry.",
    "Hold shift to select text with the mouse.",
    "In tmux, copying to your clipboard needs 'set -g set-clipboard on'.",
)
#: Keys that move in any list or text, which the first page leaves out.
_MOVES = ("j", "k", "g", "G", "pageup", "pagedown")


def help_text(name: str) -> str:
    """Text about a pane or a screen over the panes; the first paragraph is for the first page."""
    texts = tomli.loads(Path(__file__).with_name("help.toml").read_text(encoding="utf-8"))
    return str(texts.get(name, ""))


class HelpScreen(Overlay[None]):
    """The help screen, built from the keys table with the user's changes; the key that opened it turns its page.

    Args:
        title: The name of the pane or screen.
        name: The name of its text; the first paragraph is on the first page.
        keys: The key table with the user's changes.
        scope: The scope of its keys; empty for a screen whose keys are not in the table.
        told: The keys that such a screen shows now, with their functions.
        acts: True if a key's action is available now; the first page leaves the others out.
        more: Keys of other panes that act there, for the first page.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss(None)", "close", show=False),
        Binding("question_mark,f1", "turn", "all keys", show=False, id="app.help"),
    ]

    def __init__(
        self,
        title: str,
        name: str,
        keys: KeyTable,
        scope: str,
        told: Callable[[], Sequence[str]] = tuple,
        *,
        acts: Callable[[Key], bool] = lambda _: True,
        more: Sequence[Key] = (),
    ) -> None:
        super().__init__()
        self._title, self._about, self._keys, self._scope, self._told = title, help_text(name), keys, scope, told
        self._acts, self._more = acts, more
        self._shown: Sequence[str] = ()
        self._shows_all = False
        self._text = HangingBlock(Content(""))

    def compose(self) -> ComposeResult:
        yield OverlayBox(self._text, title=f"Help · {one_line(self._title, 60)}", width=84)

    @property
    def footer_keys(self) -> Sequence[tuple[str, str]]:
        """The keys for the last line of the screen: its frame has the others."""
        return [("esc", "close")]

    def on_mount(self) -> None:
        """Show the first page."""
        self._show()
        self._fit(self.query_one(OverlayBox))

    def action_turn(self) -> None:
        """Show all keys, or the first page again."""
        self._shows_all = not self._shows_all
        self._show()

    def _show(self) -> None:
        box, turns = self.query_one(OverlayBox), self._keys["app.help"].display
        self._shown = self._told()
        own = [key for key in self._keys.scope(self._scope) if self._shows_all or self._acts(key)]
        about, more, shows_all = self._about, self._more, self._shows_all
        self._text.show(help_content(about, self._keys, self._scope, self._shown, own, more, shows_all=shows_all))
        box.show_keys(f"{turns} {'first page' if self._shows_all else 'all keys'}  j k scroll  esc close")
        box.scroll_home(animate=False)

    @on(OverlayBox.KeysShown)
    def _keys_shown(self) -> None:
        """Show the new keys of the screen below, such as those of a job that has ended."""
        if self._told() != self._shown:
            self._show()

    def on_resize(self) -> None:
        """Fit the box to the new height."""
        self._fit(self.query_one(OverlayBox))

    def _fit(self, box: OverlayBox) -> None:
        # Before the first paint: a box that shrinks after it is sent twice.
        box.styles.max_height = _ROWS if self.app.size.height > _ROWS + 2 else None


def help_content(
    about: str,
    keys: KeyTable,
    scope: str,
    told: Sequence[str],
    own: Sequence[Key],
    more: Sequence[Key] = (),
    *,
    shows_all: bool = False,
) -> Content:
    """The first page of the help, at most 150 words, or all of it; arguments as in :class:`HelpScreen`.

    Args:
        about: Its text.
        keys: The key table.
        scope: The scope.
        told: Keys that are not in the table.
        own: The keys of the scope.
        more: Keys of other panes.
        shows_all: All of it.
    """
    first, _, rest = about.partition("\n\n")
    app = [] if scope in ("", *SCREENS) else keys.scope("app")
    if not shows_all:
        panes = [key for key in app if key.pane]
        lines = [(" ".join(key.display for key in panes), ", ".join(key.description for key in panes))] if panes else []
        chosen = [*more, *(key for key in own if key.footer and key not in more)]
        chosen = chosen or [key for key in own if key.keys.split(",")[0] not in _MOVES]
        lines += [(key.display, key.help or key.description) for key in chosen]
        lines += [(key.display, key.help) for key in app if key.footer]
        return Content("\n").join([Content(first), Content(""), *map(Content, told), *_table(lines)])
    parts = [Content(first), *([Content(""), Content(rest)] if rest else []), *map(Content, told)]
    for head, listed in (("Keys here", own), ("Keys everywhere", app)):
        if listed:
            parts += [Content(""), Content.styled(head, "$primary bold"), *_table(_all_keys(listed, keys))]
    parts += [Content(""), Content.styled("Good to know", "$primary bold"), *(Content(note) for note in NOTES)]
    parts.append(Content(f"Your own keys: {one_line(shown_path(config_dir() / 'keymap.toml'), 200)}"))
    return Content("\n").join(parts)


def _all_keys(listed: Sequence[Key], keys: KeyTable) -> list[tuple[str, str]]:
    """Every key with its sentence; a key that does the reverse stands beside its own."""
    lines = []
    reverse = {twin.id for key in listed if (twin := keys.twin(key)) is not None}
    for key in listed:
        twin = keys.twin(key)
        parts = [key.display, *map(display_key, key.keys.split(",")[1:])]
        if twin is not None:
            lines.append((" ".join([*parts, twin.display]), f"{key.help or key.description}; {twin.display} goes back"))
        elif key.id not in reverse:
            lines.append((" ".join(parts), key.help or key.description))
    return lines


def _table(lines: Sequence[tuple[str, str]]) -> list[Content]:
    width = max((len(shown) for shown, _ in lines), default=0)
    return [Content.assemble((f"  {shown.ljust(width)}", "bold"), f"   {text}") for shown, text in lines]
