"""Filter of typed-ahead keys: a burst that reads as text is dropped where nothing takes text.

A terminal delivers keys in a burst when they are typed ahead on a slow line, and when text is pasted or sent by another
program. Typed-ahead keys must work (``t r enter``, ``1 o path enter``, ``jjjj``); text must do nothing. A burst is text
if it has unbound letters, many different commands, or a key that asks for input in the middle of a word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from textual import events

from tui.keys import KeyTable

#: Letters from which a burst with an unbound letter is text from its beginning.
WORD = 3
#: Different commands from which a burst is text.
MANY_COMMANDS = 3
#: Maximum keys of a burst that are examined; a paste may have thousands.
LOOKED_AT = 64
_NUMBER = frozenset("0123456789.-+eE")


@dataclass(frozen=True)
class Place:
    """Meaning of keys at the focus."""

    takes_text: bool = False
    """True if keys are text here."""
    scope: str = ""
    """The scope in the key table: the focused pane, or the screen over it; empty if that has none."""
    own: Container[str] = frozenset()
    """Further keys that the focused widget or the dialog handles."""


@dataclass
class Walk:
    """Effects of a burst's keys so far."""

    letters: int = 0
    has_unknown: bool = False
    """True if a letter is unbound."""
    commands: set[str] = field(default_factory=set)
    moves: bool = False
    """True if a key moves a cursor."""
    asks_within: bool = False
    """True if a letter after other keys asks for input, like the ``i`` of ``git``."""

    @property
    def is_text(self) -> bool:
        """True if the keys are text rather than commands."""
        is_word = self.has_unknown and self.letters >= WORD
        return is_word or len(self.commands) >= MANY_COMMANDS or self.asks_within


class TypedAhead:
    """Filter of the keys of a burst.

    Args:
        table: The keys with the user's changes.
        tell: Called when the first key of a text is dropped.
    """

    def __init__(self, table: KeyTable, tell: Callable[[], None]) -> None:
        self._table, self._tell = table, tell
        self._ahead: deque[events.Key] = deque()
        self._walk = Walk()
        self._drops = False

    def expect(self, keys: Sequence[events.Key], *, goes_on: bool) -> None:
        """Announce the keys of a burst; their events follow.

        Args:
            keys: The keys.
            goes_on: True if they continue the burst before.
        """
        if not goes_on:
            self._walk, self._drops = Walk(), False
        self._ahead = deque(keys)

    def admits(self, key: events.Key, place: Place) -> bool:
        """True if a key is to be handled; otherwise it is dropped with the rest of its burst."""
        if not self._ahead or self._ahead[0] is not key:
            # A single key ends a dropped text, and may be continued by a burst.
            self._walk, self._drops = Walk(), False
            if not place.takes_text:
                self._take(self._walk, place, key, ())
            return True
        self._ahead.popleft()
        if self._drops:
            return False
        if place.takes_text:
            self._walk = Walk()
            return True
        self._drops = self._reads_as_text(key, place)
        if not self._drops:
            self._take(self._walk, place, key, ())
        elif len({each.key for each in (key, *islice(self._ahead, LOOKED_AT)) if each.is_printable}) > 1:
            # A repeated key is held down, not text.
            self._tell()
        return not self._drops

    def _reads_as_text(self, key: events.Key, place: Place) -> bool:
        rest = list(islice(self._ahead, LOOKED_AT))
        if key.is_printable and not self._is_known(key, place):
            # The rest was not meant for this place either.
            return bool(rest) or self._walk.letters > 0
        trial = replace(self._walk, commands=set(self._walk.commands))
        keys: list[events.Key] = [key, *rest]
        for number, each in enumerate(keys):
            following = self._take(trial, place, each, keys[number + 1 :])
            if following is None:
                break
            place = following
        return trial.is_text

    def _is_known(self, key: events.Key, place: Place) -> bool:
        return key.key in place.own or self._table.find(place.scope, key.key) is not None

    def _take(self, walk: Walk, place: Place, key: events.Key, rest: Sequence[events.Key]) -> Place | None:
        """Add a key to a walk; returns the place of the next key, None if that takes text."""
        walk.letters += key.is_printable
        writes_words = key.is_printable and (key.character or "").isalpha()
        found = self._table.find(place.scope, key.key)
        if found is None:
            walk.has_unknown = walk.has_unknown or (key.is_printable and key.key not in place.own)
            return place
        if found.pane:
            return Place(scope=found.pane)
        if found.then:
            may_ask = not walk.commands and not (writes_words and walk.moves)
            if may_ask and (found.then != "number" or _is_number(rest)):
                return None
            walk.asks_within = walk.asks_within or writes_words
        if found.palette:
            walk.commands.add(found.id)
        else:
            walk.moves = True
        return place


def _is_number(keys: Sequence[events.Key]) -> bool:
    """True if the keys up to the first non-printable one are a number."""
    for key in keys:
        if not key.is_printable:
            return True
        if key.character not in _NUMBER:
            return False
    return True
