"""Keys typed ahead: a burst of keys that reads as text, where no text is being entered, is no command.

A terminal delivers a burst where keys are typed faster than they are read, over a slow line, and where text is pasted
or sent by another program. The first kind must work (``t r enter``, ``1 o path enter``, ``jjjj``), the second must
do nothing. Text gives itself away by letters that mean nothing here, by many different commands within a few
milliseconds, and by a key that asks for a text in the middle of a word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from textual import events

from tui.keys import KeyTable

#: Letters from which a burst with one that means nothing is text from its beginning.
WORD = 3
#: Different commands from which a burst is text.
MANY_COMMANDS = 3
#: Keys of a burst that are looked at; a paste may have thousands.
LOOKED_AT = 64
_NUMBER = frozenset("0123456789.-+eE")


@dataclass(frozen=True)
class Place:
    """The meaning of keys where the focus is."""

    takes_text: bool = False
    """Whether keys are text here."""
    scope: str = ""
    """The scope of the keys table: the focused pane, or the screen over it; empty where that has none."""
    own: Container[str] = frozenset()
    """Keys that the focused widget or the dialog knows by itself."""


@dataclass
class Walk:
    """The keys of a burst so far, and what they would do."""

    letters: int = 0
    has_unknown: bool = False
    """Whether a letter means nothing."""
    commands: set[str] = field(default_factory=set)
    moves: bool = False
    """Whether a key moves a cursor."""
    asks_within: bool = False
    """Whether a letter asks for a text behind other keys, as the ``i`` of ``git`` does."""

    @property
    def is_text(self) -> bool:
        """Whether the keys are text rather than commands."""
        is_word = self.has_unknown and self.letters >= WORD
        return is_word or len(self.commands) >= MANY_COMMANDS or self.asks_within


class TypedAhead:
    """Decides which keys of a burst are handled.

    Args:
        table: The keys with the user's changes.
        tell: Called when a text begins to be dropped.
    """

    def __init__(self, table: KeyTable, tell: Callable[[], None]) -> None:
        self._table, self._tell = table, tell
        self._ahead: deque[events.Key] = deque()
        self._walk = Walk()
        self._drops = False

    def expect(self, keys: Sequence[events.Key], *, goes_on: bool) -> None:
        """Announce the keys of a burst, which follow.

        Args:
            keys: The keys.
            goes_on: Whether they continue the burst before.
        """
        if not goes_on:
            self._walk, self._drops = Walk(), False
        self._ahead = deque(keys)

    def admits(self, key: events.Key, place: Place) -> bool:
        """Whether a key is to be handled; where not, all that is left of its burst is dropped with it."""
        if not self._ahead or self._ahead[0] is not key:
            # Pressed by itself: what was dropped before has ended, and those that follow at once may continue this one.
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
        elif len({each.key for each in (key, *islice(self._ahead, LOOKED_AT)) if _is_letter(each)}) > 1:
            # A key that is held down is no text.
            self._tell()
        return not self._drops

    def _reads_as_text(self, key: events.Key, place: Place) -> bool:
        rest = list(islice(self._ahead, LOOKED_AT))
        if _is_letter(key) and not self._is_known(key, place):
            # The rest is not meant for here either.
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
        """Take a key into a walk; returns the place where the next one has its meaning, None where that is a text."""
        walk.letters += _is_letter(key)
        writes_words = _is_letter(key) and (key.character or "").isalpha()
        found = self._table.find(place.scope, key.key)
        if found is None:
            walk.has_unknown = walk.has_unknown or (_is_letter(key) and key.key not in place.own)
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


def _is_letter(key: events.Key) -> bool:
    return key.is_printable


def _is_number(keys: Sequence[events.Key]) -> bool:
    """Whether the keys up to the first one that writes nothing are a number."""
    for key in keys:
        if not _is_letter(key):
            return True
        if key.character not in _NUMBER:
            return False
    return True
