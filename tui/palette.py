"""The command palette: every action of the keys table, found by its words."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from tui.keys import Key
from tui.panes import PANES
from tui.shell import Shell, shell_of

_TITLES = {spec.id: spec.title for spec in PANES}


class KeyCommands(Provider):
    """The command provider of the palette; an action of a pane first shows that pane."""

    @property
    def _shell(self) -> Shell:
        return shell_of(self.screen)

    def _entries(self) -> Iterator[tuple[str, str, Key]]:
        for key in self._shell.keys.keys:
            if key.palette and self._shell.can_run(key):
                sentence = key.help or key.description
                prefix = f"{_TITLES[key.scope]}: " if key.scope in _TITLES else ""
                yield f"{prefix}{sentence}", key.display, key

    async def discover(self) -> Hits:
        """All commands, while nothing has been typed."""
        for text, shown, key in self._entries():
            yield DiscoveryHit(Content(text), partial(self._shell.run_key, key), text=text, help=f"key {shown}")

    async def search(self, query: str) -> Hits:
        """The commands that match the typed words."""
        matcher = self.matcher(query)
        for text, shown, key in self._entries():
            score = matcher.match(text)
            if score > 0:
                run = partial(self._shell.run_key, key)
                yield Hit(score, matcher.highlight(text), run, text=text, help=f"key {shown}")
