"""Command palette: every action of the key table, found by the beginnings of its words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli

from tui.keys import Key, KeyTable
from tui.panes import PANES
from tui.screens.pick import Pick, PickScreen

#: Other words of the commands, by id.
WORDS: dict[str, tuple[str, ...]] = {
    f"{scope}.{name}": tuple(words)
    for scope, section in tomli.loads(Path(__file__).with_name("palette.toml").read_text(encoding="utf-8")).items()
    for name, words in section.items()
}
_TITLES = {spec.id: spec.title for spec in PANES}
_WORD = re.compile(r"[^\W_]+")
#: Ranks of a match: at a word of the name, of the other words, of the sentence; or within a word of any of them.
_NAME, _ALSO, _SENTENCE, _WITHIN = range(4)


@dataclass(frozen=True)
class Command:
    """Command of the palette, with the words that it is found by."""

    key: Key
    words: tuple[tuple[int, str], ...]
    """The words, each with the rank of a match at its beginning."""

    @classmethod
    def of(cls, key: Key) -> Command:
        """The command of a key."""
        also = " ".join(WORDS.get(key.id, ()))
        texts = ((_NAME, key.description), (_ALSO, also), (_SENTENCE, f"{key.help} {_title(key)}"))
        return cls(key, tuple((rank, word) for rank, text in texts for word in _WORD.findall(text.lower())))

    @property
    def text(self) -> str:
        """Its line in the palette: pane and sentence."""
        sentence = self.key.help or self.key.description
        return f"{_title(self.key)}: {sentence}" if _title(self.key) else sentence

    def rank(self, terms: Sequence[str]) -> int | None:
        """The rank of a match of all terms, lower for a better match; None if a term is missing."""
        ranks = [self._rank(term) for term in terms]
        found = [rank for rank in ranks if rank is not None]
        return sum(found) if len(found) == len(ranks) else None

    def _rank(self, term: str) -> int | None:
        # A whole word ranks above a longer one with the same beginning.
        begun = [2 * rank + (word != term) for rank, word in self.words if word.startswith(term)]
        if begun:
            return min(begun)
        return 2 * _WITHIN if any(term in word for _, word in self.words) else None


def _title(key: Key) -> str:
    return _TITLES.get(key.scope, "")


def list_commands(keys: KeyTable, pane: str, can_run: Callable[[Key], bool]) -> list[Command]:
    """The available commands: first of the pane, then of the app, then of the other panes.

    Args:
        keys: The key table with the user's changes.
        pane: The focused pane.
        can_run: True if a key's action is available now.
    """
    offered = [Command.of(key) for key in keys.keys if key.palette and can_run(key)]
    return sorted(offered, key=lambda command: (command.key.scope != pane, command.key.scope != "app"))


def find_commands(commands: Sequence[Command], typed: str) -> list[Command]:
    """The commands that match every typed word at the beginning of a word or within it, the best first."""
    terms = _WORD.findall(typed.lower())
    ranked = [(command.rank(terms), command) for command in commands]
    matching = [(rank, command) for rank, command in ranked if rank is not None]
    return [command for _, command in sorted(matching, key=lambda pair: pair[0])]


def palette_screen(keys: KeyTable, pane: str, can_run: Callable[[Key], bool]) -> PickScreen:
    """The palette's screen, which returns the id of a key; arguments as in :func:`list_commands`."""
    commands = list_commands(keys, pane, can_run)

    def picks(typed: str) -> list[Pick]:
        found = find_commands(commands, typed)
        return [Pick(command.key.id, name=command.text, hint=command.key.display) for command in found]

    return PickScreen("Commands", picks(""), find=picks)
