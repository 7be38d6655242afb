"""The command palette: every action of the keys table, found by the beginnings of its words."""

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
#: Ranks of a match: in the name of the command, in its other words, in its sentence, and within a word of any of them.
_NAME, _ALSO, _SENTENCE, _WITHIN = range(4)


@dataclass(frozen=True)
class Command:
    """A command of the palette, with the words that it is found by."""

    key: Key
    words: tuple[tuple[int, str], ...]
    """Each with the rank of a match that begins it."""

    @classmethod
    def of(cls, key: Key) -> Command:
        """The command of a key."""
        also = " ".join(WORDS.get(key.id, ()))
        texts = ((_NAME, key.description), (_ALSO, also), (_SENTENCE, f"{key.help} {_title(key)}"))
        return cls(key, tuple((rank, word) for rank, text in texts for word in _WORD.findall(text.lower())))

    @property
    def text(self) -> str:
        """Its line: the pane, and what it does there."""
        sentence = self.key.help or self.key.description
        return f"{_title(self.key)}: {sentence}" if _title(self.key) else sentence

    def rank(self, terms: Sequence[str]) -> int | None:
        """The rank of a match of all terms, lower for a better one; None where one is missing."""
        ranks = [self._rank(term) for term in terms]
        found = [rank for rank in ranks if rank is not None]
        return sum(found) if len(found) == len(ranks) else None

    def _rank(self, term: str) -> int | None:
        # Of two words that begin so, the whole one is meant.
        begun = [2 * rank + (word != term) for rank, word in self.words if word.startswith(term)]
        if begun:
            return min(begun)
        return 2 * _WITHIN if any(term in word for _, word in self.words) else None


def _title(key: Key) -> str:
    return _TITLES.get(key.scope, "")


def list_commands(keys: KeyTable, pane: str, can_run: Callable[[Key], bool]) -> list[Command]:
    """The commands that make sense now: those of the pane first, then those of the app, then the others.

    Args:
        keys: The table of keys with the user's changes.
        pane: The focused pane.
        can_run: Whether a key's action makes sense now.
    """
    offered = [Command.of(key) for key in keys.keys if key.palette and can_run(key)]
    return sorted(offered, key=lambda command: (command.key.scope != pane, command.key.scope != "app"))


def find_commands(commands: Sequence[Command], typed: str) -> list[Command]:
    """The commands in which every typed word begins a word, or at least is part of one; the best first."""
    terms = _WORD.findall(typed.lower())
    ranked = [(command.rank(terms), command) for command in commands]
    matching = [(rank, command) for rank, command in ranked if rank is not None]
    return [command for _, command in sorted(matching, key=lambda pair: pair[0])]


def palette_screen(keys: KeyTable, pane: str, can_run: Callable[[Key], bool]) -> PickScreen:
    """The screen to choose a command in, with the arguments of :func:`list_commands`; returns the id of its key."""
    commands = list_commands(keys, pane, can_run)

    def find(typed: str) -> list[Pick]:
        return picks_of(find_commands(commands, typed))

    return PickScreen("Commands", picks_of(commands), find=find)


def picks_of(commands: Sequence[Command]) -> list[Pick]:
    """The commands as entries of a list."""
    return [Pick(command.key.id, name=command.text, hint=command.key.display) for command in commands]
