"""Command palette: every action of the key table and every option, found by the beginnings of their words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli

from core.config.schema import Option, options
from tui.keys import Key, KeyTable, key_of
from tui.panes import PANES
from tui.screens.pick import Pick, PickScreen

#: Name and other words of the commands, by id.
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

    id: str
    """The id of its key; ``option:`` and the name of an option; ``press:`` and a key that a screen shows."""
    scope: str
    text: str
    """Its line in the palette: pane and name."""
    shown: str
    """The displayed key; empty for an option."""
    words: tuple[tuple[int, str], ...]
    """The words, each with the rank of a match at its beginning."""

    @classmethod
    def of(cls, key: Key, *, is_covered: bool = False) -> Command:
        """The command of a key; ``is_covered`` if a screen is over the panes."""
        (name, *_), title = WORDS[key.id], _TITLES.get(key.scope, "")
        words = _words((_NAME, key.description), (_ALSO, " ".join(WORDS[key.id])), (_SENTENCE, f"{key.help} {title}"))
        shown = key.display_last if is_covered and key.scope == "app" else key.display
        return cls(key.id, key.scope, f"{title} · {name}" if title else name, shown, words)

    @classmethod
    def of_shown(cls, shown: str) -> Command | None:
        """The command of a key in a screen's frame, with its function: ``y copy``; None for keys that move, ``j k``."""
        display, _, text = shown.partition(" ")
        key = key_of(display)
        if key is None or not text or text.partition(" ")[0] in ("k", "G"):
            return None
        return cls(f"press:{key}", "", text, display, _words((_NAME, text)))

    @classmethod
    def of_option(cls, option: Option) -> Command:
        """The command that goes to an option of the configuration."""
        words = _words((_NAME, option.key), (_ALSO, option.section), (_SENTENCE, option.help))
        return cls(f"option:{option.name}", "option", f"{_TITLES['config']} · {option.name}: {option.help}", "", words)

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


def _words(*texts: tuple[int, str]) -> tuple[tuple[int, str], ...]:
    return tuple((rank, word) for rank, text in texts for word in _WORD.findall(text.lower().replace("_", " ")))


def list_commands(keys: KeyTable, pane: str, can_run: Callable[[Key], bool]) -> list[Command]:
    """The available commands: first of the pane or screen, then of the app, then of the other panes; then the options.

    Args:
        keys: The key table with the user's changes.
        pane: The focused pane, or the screen over the panes.
        can_run: True if a key's action is available now.
    """
    is_covered = pane not in _TITLES
    offered = [Command.of(key, is_covered=is_covered) for key in keys.keys if key.palette and can_run(key)]
    offered.sort(key=lambda command: (command.scope != pane, command.scope != "app"))
    # An option is shown in its pane, which a screen covers.
    return offered + [Command.of_option(option) for option in options() if not is_covered]


def find_commands(commands: Sequence[Command], typed: str) -> list[Command]:
    """The commands that match every typed word at the beginning of a word or within it, the best first."""
    terms = _WORD.findall(typed.lower())
    ranked = [(command.rank(terms), command) for command in commands]
    matching = [(rank, command) for rank, command in ranked if rank is not None]
    return [command for _, command in sorted(matching, key=lambda pair: pair[0])]


def palette_screen(keys: KeyTable, pane: str, can_run: Callable[[Key], bool], shown: Sequence[str] = ()) -> PickScreen:
    """The palette's screen, which returns an id of a command.

    Args:
        keys: See :func:`list_commands`.
        pane: See there.
        can_run: See there.
        shown: Keys in the frame of the screen over the panes, with their functions: ``y copy``.
    """
    commands = [command for text in shown if (command := Command.of_shown(text)) is not None]
    commands += list_commands(keys, pane, can_run)

    def picks(typed: str) -> list[Pick]:
        found = find_commands(commands, typed)
        return [Pick(command.id, name=command.text, hint=command.shown) for command in found]

    screen = PickScreen("Commands", picks(""), find=picks)
    screen.id = "palette"
    return screen
