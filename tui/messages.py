"""Messages of the terminal to the app, posted by the thread that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.events import Key
from textual.message import Message


@dataclass
class PasteRefused(Message):
    """A paste over the size limit has been dropped as a whole."""

    limit: int
    """The limit in bytes."""


@dataclass
class KeysAhead(Message):
    """The terminal has delivered keys faster than anyone types; their events follow."""

    keys: Sequence[Key]
    goes_on: bool
    """True if they continue the burst before."""


@dataclass
class KeysHandled(Message):
    """Marker after a key: when it has bubbled up from the focus, the key and the messages it caused are handled."""

    reached: Callable[[], object]
    """Called then, in the app's thread."""
    rounds: int = 2
    """Times it starts from the focus: once for the key, and once for the messages that the key caused."""


@dataclass
class TerminalGone(Message):
    """The terminal is gone."""
