"""Messages of threads to the app: results of the bridge and of the server, and input of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textual.events import Key
from textual.message import Message

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.errors import UserError
    from core.hardware.snapshot import Device
    from core.queue.view import QueueView
    from core.runs.catalog.result import RunDetail
    from core.runs.catalog.rows import RunFigures, RunRow
    from core.runs.record.events import Event
    from core.runs.record.history import RunHistory
    from core.runs.record.state import Rank, RunState
    from core.runs.record.store import Labels, Run
    from core.serve.options import ServerAddress
    from tui.datasets.here import Here


@dataclass
class SurroundingsSeen(Message):
    """Surroundings have been read: data files in the working directory, and earlier runs."""

    here: Here


@dataclass
class ConfigLoaded(Message):
    """A configuration has been read from its file, or a new one begun."""

    document: ConfigDocument


@dataclass
class ControlAnswered(Message):
    """A command has been carried out, by the worker or without its help (``signal``, ``kill``)."""

    run: Run
    command: str
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the command."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """The worker's answer."""


@dataclass
class ControlFailed(Message):
    """A worker has refused a command, or does not answer."""

    run: Run
    command: str
    error: UserError
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the command."""


@dataclass
class RunStarted(Message):
    """A worker has been started on a run, new or continued."""

    run: Run


@dataclass
class RunAttached(Message):
    """A run has been read from its beginning and is being followed."""

    run: Run
    state: RunState
    history: RunHistory
    found: bool = False
    """True if the app found it by itself, without a request of the user."""
    is_partial: bool = False
    """True if the history has some of the steps only; the whole one follows."""
    ranks: Sequence[Rank] = ()
    """Its processes with their signs of life; empty for a run of one."""


@dataclass
class RunAdvanced(Message):
    """New events of the followed run since the last message; a run read anew is a :class:`RunAttached`."""

    run: Run
    state: RunState
    events: Sequence[Event]
    ranks: Sequence[Rank] = ()
    """Its processes as in :class:`RunAttached`."""


@dataclass
class DevicesSampled(Message):
    """A sample of the devices as seen by this process, while no worker reports them."""

    devices: Sequence[Device]

    def can_replace(self, message: Message) -> bool:
        """Only the newest sample matters."""
        return isinstance(message, DevicesSampled)


@dataclass
class RunsListed(Message):
    """The list of runs on this machine, newest first."""

    rows: Sequence[RunRow]

    def can_replace(self, message: Message) -> bool:
        """Only the newest list matters."""
        return isinstance(message, RunsListed)


@dataclass
class QueueListed(Message):
    """The queue of runs as it is now."""

    view: QueueView

    def can_replace(self, message: Message) -> bool:
        """Only the newest one matters."""
        return isinstance(message, QueueListed)


@dataclass
class RunLabeled(Message):
    """A run has other labels."""

    run: Run
    labels: Labels


@dataclass
class RunRestored(Message):
    """A run has come back from the trash."""

    run: Run


@dataclass
class RunFiguresRead(Message):
    """Figures of runs in view, by run id."""

    figures: Mapping[str, RunFigures]


@dataclass
class RunDetailRead(Message):
    """An account of the run under the cursor."""

    detail: RunDetail


@dataclass
class ServeChanged(Message):
    """The server has come up, makes progress, or has ended."""

    address: ServerAddress | None = None
    """Where it listens, once clients can connect."""
    progress: str = ""
    error: UserError | None = None
    """Why it has ended, unless the user has ended it."""
    is_over: bool = False


@dataclass
class RunDeleted(Message):
    """A run has been deleted."""

    run: Run
    in_trash: bool = False
    """True if it can be restored."""


@dataclass
class NoRunFound(Message):
    """The app has looked for runs on its own, and found none."""


@dataclass
class ActionFailed(Message):
    """A request of the user has failed."""

    title: str
    error: UserError


@dataclass
class PasteRefused(Message):
    """A paste over the size limit has been refused as a whole."""

    limit: int
    """The limit in bytes."""


@dataclass
class KeysAhead(Message):
    """The terminal has delivered keys faster than anyone presses them; they follow."""

    keys: Sequence[Key]
    goes_on: bool
    """True if they continue the keys before."""


@dataclass
class KeysHandled(Message):
    """The end of a burst: once it has bubbled up from the focus, the keys before it and their messages are handled."""

    reached: Callable[[], object]
    """Called then; in the app's thread."""
    rounds: int = 2
    """How often it starts from the focus: once for the key, and once for the messages that the key has caused."""


@dataclass
class TerminalGone(Message):
    """The terminal is gone: no more input will come."""
