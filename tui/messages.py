"""Messages from threads to the app: results of the bridge and the server, and terminal input."""

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


class Result(Message):
    """Result of a thread of the bridge or of the server."""


class Newest(Message):
    """Message that replaces older ones of its class in the queue."""

    def can_replace(self, message: Message) -> bool:
        """True for a message of the same class."""
        return type(message) is type(self)


@dataclass
class SurroundingsSeen(Result):
    """Data files of the working directory and earlier runs have been found."""

    here: Here


@dataclass
class ConfigLoaded(Result):
    """A configuration has been read from its file, or a new one created."""

    document: ConfigDocument


@dataclass
class ControlAnswered(Result):
    """A command has been carried out, by the worker or from outside (``signal``, ``kill``)."""

    run: Run
    command: str
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the command."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """The worker's answer."""


@dataclass
class ControlFailed(Result):
    """A worker has refused a command, or has not answered."""

    run: Run
    command: str
    error: UserError
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the command."""


@dataclass
class RunStarted(Result):
    """A worker has been started for a new or continued run."""

    run: Run


@dataclass
class RunAttached(Result):
    """A run has been read from its beginning, and is followed from now on."""

    run: Run
    state: RunState
    history: RunHistory
    found: bool = False
    """True if the app found it without a request of the user."""
    is_partial: bool = False
    """True if the history has only some of the steps; the whole one follows."""
    ranks: Sequence[Rank] = ()
    """Heartbeats of its processes; empty for a run of one."""


@dataclass
class RunAdvanced(Result):
    """New events of the followed run since the last message."""

    run: Run
    state: RunState
    events: Sequence[Event]
    ranks: Sequence[Rank] = ()
    """Heartbeats of its processes, as in :class:`RunAttached`."""


@dataclass
class DevicesSampled(Newest, Result):
    """A sample of the devices, taken in this process while no worker reports them."""

    devices: Sequence[Device]


@dataclass
class RunsListed(Newest, Result):
    """The list of runs on this machine, newest first."""

    rows: Sequence[RunRow]


@dataclass
class QueueListed(Newest, Result):
    """The present queue of runs."""

    view: QueueView


@dataclass
class RunLabeled(Result):
    """The labels of a run have changed."""

    run: Run
    labels: Labels


@dataclass
class RunRestored(Result):
    """A run has been restored from the trash."""

    run: Run


@dataclass
class RunFiguresRead(Result):
    """Figures of runs in view, by run id."""

    figures: Mapping[str, RunFigures]


@dataclass
class RunDetailRead(Result):
    """Details of the run under the cursor."""

    detail: RunDetail


@dataclass
class ServeChanged(Result):
    """The server has started, makes progress, or has ended."""

    address: ServerAddress | None = None
    """Its address, once clients can connect."""
    progress: str = ""
    error: UserError | None = None
    """The reason for its end, unless the user ended it."""
    is_over: bool = False


@dataclass
class RunDeleted(Result):
    """A run has been deleted."""

    run: Run
    in_trash: bool = False
    """True if it can be restored."""


@dataclass
class NoRunFound(Result):
    """The app found no run to show at its start."""


@dataclass
class ActionFailed(Result):
    """A request of the user has failed."""

    title: str
    error: UserError


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
