"""Messages that cross widgets: events and requests, posted up to the app."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textual.events import Key
from textual.message import Message

if TYPE_CHECKING:
    from core.analysis.lengths import Lengths
    from core.config.document import ConfigDocument
    from core.errors import UserError
    from core.hardware.snapshot import Device
    from core.queue.view import QueueView
    from core.runs.catalog.earlier import Origin
    from core.runs.catalog.result import RunDetail
    from core.runs.catalog.rows import RunFigures, RunRow
    from core.runs.record.events import Event
    from core.runs.record.history import RunHistory
    from core.runs.record.state import Rank, RunState
    from core.runs.record.store import Labels, Run
    from core.serve.options import ServerAddress
    from tui.datasets.here import Here


@dataclass
class DatasetChosen(Message):
    """Request: a file of rows, picked to train on, to train on with those of the configuration, or to hold out."""

    path: Path
    use: Literal["train", "add", "eval"] = "train"


@dataclass
class FormerRequested(Message):
    """Request: bring back the configuration that was there before the present one."""


@dataclass
class DataRequested(Message):
    """Request: show the rows of a file in the Data pane."""

    path: Path


@dataclass
class LengthsMeasured(Message):
    """The lengths of the rows of the file in the Data pane, as a run of the configuration would read them."""

    path: Path
    lengths: Lengths | None
    """None where they are not known any more."""


@dataclass
class SurroundingsSeen(Message):
    """Surroundings have been read: data files in the working directory, and earlier runs."""

    here: Here


@dataclass
class FormRequested(Message):
    """Request: a screen for options that are best chosen with the rows in view."""

    form: Literal["template", "columns"]


@dataclass
class OptionsChosen(Message):
    """Request: other values for options of the configuration in the app; its file is written only by a save.

    Where they were chosen for a file that the configuration does not name, a new one begins with them.
    """

    values: Mapping[str, Any]
    """``section.key`` to value; None for the default, a path as a :class:`~pathlib.Path`."""
    notice: str = ""
    """The notice shown after the change."""
    path: Path | None = None
    """The file that they were chosen for; None where they are for no file."""


@dataclass
class ConfigEdited(Message):
    """The configuration in the app has changed; the document may be invalid."""

    document: ConfigDocument
    option: str = ""
    """The option changed, ``section.key``; empty where it may be any."""
    saved: str | None = None
    """The text of its file, or else the text that needs no saving; None where that is unchanged."""
    origin: Origin | None = None
    """The run that it was begun with; counts where ``saved`` is given."""
    draft: str = ""
    """The id of the draft that it has just been opened from."""


@dataclass
class ConfigLoaded(Message):
    """A configuration has been read from its file, or a new one begun."""

    document: ConfigDocument


@dataclass
class ConfigSaved(Message):
    """The configuration in the app is now the same as its file."""

    document: ConfigDocument


@dataclass
class StartRequested(Message):
    """Request: start a run of the present configuration."""


@dataclass
class SampleRequested(Message):
    """Request: start a run of the sample data on the starter model."""


@dataclass
class OpenRunRequested(Message):
    """Request: show a run, and follow it if it is live."""

    run: Run


@dataclass
class EditRunRequested(Message):
    """Request: open the configuration of a run as a new one."""

    run: Run


@dataclass
class ContinueRequested(Message):
    """Request: continue an ended run from its last checkpoint; the run that is shown, if none is given."""

    run: Run | None = None


@dataclass
class ExportRequested(Message):
    """Request: the screen that exports what a run has trained."""

    run: Run
    step: int | None = None
    """The step of a checkpoint; None for the result, or the newest checkpoint."""


@dataclass
class ControlRequested(Message):
    """Request: send the worker of the shown run a command, or take it back where it waits already: pause, resume,
    checkpoint, park, skip_evaluation or stop (confirmed first)."""

    command: str


@dataclass
class SettingsRequested(Message):
    """Request: other settings for a live run."""

    run: Run
    settings: Mapping[str, Any]
    """``section.key`` to value, as ``set`` of the control protocol takes them."""


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
class PaneRequested(Message):
    """Request: show another pane: data, config, train, chat or runs."""

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
    """Whether the app found it by itself, without a request of the user."""
    is_partial: bool = False
    """Whether the history has some of the steps only; the whole one follows."""
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
class RunsInView(Message):
    """Request: figures of the runs in view, and an account of the one under the cursor."""

    runs: Sequence[Run]
    chosen: Run | None = None
    before: Run | None = None
    """The run that the chosen one is compared with."""
    others: Sequence[Run] = ()
    """Runs out of sight whose figures are wanted too, to sort by."""


@dataclass
class LabelRequested(Message):
    """Request: a change of the labels of a run, as they are when it is carried out."""

    run: Run
    change: Callable[[Labels], Labels]


@dataclass
class RunLabeled(Message):
    """A run has other labels."""

    run: Run
    labels: Labels


@dataclass
class CompareRequested(Message):
    """Request: runs side by side."""

    runs: Sequence[Run]


@dataclass
class DetailsRequested(Message):
    """Request: everything about a run."""

    run: Run


@dataclass
class RestoreRequested(Message):
    """Request: the run that was deleted last comes back from the trash."""


@dataclass
class TrashRequested(Message):
    """Request: the runs in the trash."""


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
class DeleteRequested(Message):
    """Request: delete a run, once that is confirmed."""

    run: Run
    size: int | None = None
    """Its bytes on the disk, as far as known."""


@dataclass
class EvaluationRequested(Message):
    """Request: put a file of prompts to a run's model and others, after a form."""

    run: Run


@dataclass
class ServeRequested(Message):
    """Request: let other programs use a model: the server is started, or shown where it is on."""

    target: Run | Path | str


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
    """Whether it can be restored."""


@dataclass
class NoRunFound(Message):
    """The app has looked for runs on its own, and found none."""


@dataclass
class AnswerAwaited(Message):
    """A question to the model in training has been asked, answered or given up."""

    waiting: bool


@dataclass
class ActionFailed(Message):
    """Something the user asked for could not be done."""

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
    """Whether they continue the keys before."""


@dataclass
class KeysHandled(Message):
    """The keys posted before it are handled, and what they asked for, once it has bubbled up from the focus."""

    reached: Callable[[], object]
    """Called then; in the app's thread."""
    rounds: int = 2
    """How often it starts from the focus: once for the key, and once for the messages that the key has caused."""


@dataclass
class TerminalGone(Message):
    """The terminal is gone: no more input will come."""


@dataclass
class FirstPaint(Message):
    """The first screen has been painted; slow imports may start now."""
