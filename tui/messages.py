"""Messages to the app: of the terminal, posted by the thread that reads it, and of screens that show answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.events import Key
from textual.message import Message

if TYPE_CHECKING:
    from core.runs.record.store import Run


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


@dataclass
class AskWhy(Message):
    """Request for the training rows behind an answer; bubbles from a screen that shows answers to the app."""

    run: Run
    step: int | None
    """The step whose model answered; None for the run's result."""
    messages: Sequence[Mapping[str, str]]
    """The conversation, ``role`` and ``content`` each, the last message the user's."""
    answer: str
    wanted: str
    """The answer that was expected; empty if unknown."""
