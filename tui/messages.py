"""Messages that cross widgets: what has happened or is wanted, posted up to the app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textual.message import Message

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.errors import UserError
    from core.hardware.snapshot import Device
    from core.runs.catalog import RunRow
    from core.runs.events import Event
    from core.runs.history import RunHistory
    from core.runs.state import RunState
    from core.runs.store import Run


@dataclass
class DatasetChosen(Message):
    """The user has picked a file of rows to train on, or to hold out of training."""

    path: Path
    use: Literal["train", "eval"] = "train"


@dataclass
class FormRequested(Message):
    """A screen is wanted for options that are best chosen with the rows in view."""

    form: Literal["template", "columns"]


@dataclass
class OptionsChosen(Message):
    """Options are to have other values in the configuration in the app; its file is written only when it is saved."""

    values: Mapping[str, Any]
    """``section.key`` to value; None for the default, a path as a :class:`~pathlib.Path`."""
    notice: str = ""
    """What is said when it is done."""


@dataclass
class ConfigEdited(Message):
    """The configuration in the app has changed; the document may be invalid."""

    document: ConfigDocument
    option: str = ""
    """The option changed, ``section.key``; empty where it may be any."""
    saved: str | None = None
    """The text that its file has; None where that is as it was."""


@dataclass
class ConfigLoaded(Message):
    """A configuration has been read from its file, or a new one begun."""

    document: ConfigDocument


@dataclass
class ConfigSaved(Message):
    """The configuration in the app is now what its file says."""

    document: ConfigDocument


@dataclass
class StartRequested(Message):
    """A run of the present configuration is wanted."""


@dataclass
class SampleRequested(Message):
    """A run of the sample data on the starter model is wanted."""


@dataclass
class OpenRunRequested(Message):
    """A run is to be shown, and followed if it is live."""

    run: Run


@dataclass
class ContinueRequested(Message):
    """An ended run is to go on from its last checkpoint; without one, the run that is shown."""

    run: Run | None = None


@dataclass
class ControlRequested(Message):
    """A command for the worker of the run that is shown: pause, resume, checkpoint or stop, which is asked about."""

    command: str


@dataclass
class SettingsRequested(Message):
    """A run that is on is to have other settings."""

    run: Run
    settings: Mapping[str, Any]
    """``section.key`` to value, as ``set`` of the control protocol takes them."""


@dataclass
class ControlAnswered(Message):
    """A worker has carried out a command, or what is done without its help (``signal``, ``kill``) is done."""

    run: Run
    command: str
    args: Mapping[str, Any] = field(default_factory=dict)
    """What went with the command."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """What the worker said."""


@dataclass
class ControlFailed(Message):
    """A worker has refused a command, or does not answer."""

    run: Run
    command: str
    error: UserError


@dataclass
class PaneRequested(Message):
    """Another pane is to be shown: data, config, train, chat or runs."""

    pane: str


@dataclass
class PaneShown(Message):
    """A pane has come into view, or left it."""

    pane: str
    shown: bool


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
    """Whether the app came upon it by itself, rather than being asked for it."""


@dataclass
class RunAdvanced(Message):
    """What is new in the run that is followed since the last message; a run read anew is a :class:`RunAttached`."""

    run: Run
    state: RunState
    events: Sequence[Event]


@dataclass
class DevicesSampled(Message):
    """The devices as this process sees them, while no worker reports them."""

    devices: Sequence[Device]

    def can_replace(self, message: Message) -> bool:
        """Only the newest sample matters."""
        return isinstance(message, DevicesSampled)


@dataclass
class RunsListed(Message):
    """The runs on this machine, newest first."""

    rows: Sequence[RunRow]

    def can_replace(self, message: Message) -> bool:
        """Only the newest list matters."""
        return isinstance(message, RunsListed)


@dataclass
class NoRunFound(Message):
    """The app has looked for runs of its own accord, and there are none at all."""


@dataclass
class AnswerAwaited(Message):
    """A question to the model in training has been asked, or it is answered or given up."""

    waiting: bool


@dataclass
class ActionFailed(Message):
    """Something the user asked for could not be done."""

    title: str
    error: UserError


@dataclass
class PasteRefused(Message):
    """Something has been pasted that is longer than a paste may be; nothing of it was taken."""

    limit: int
    """Most bytes."""


@dataclass
class TerminalGone(Message):
    """Nothing will come from the terminal any more."""


@dataclass
class FirstPaint(Message):
    """The first screen is on the terminal; what is slow to import may come now."""
