"""Shell: the interface of the app for panes, screens and widgets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from textual.dom import DOMNode

from tui.glyphs import GlyphSet
from tui.keys import Key, KeyTable
from tui.state import AppState

if TYPE_CHECKING:
    from core.analysis.result import Analysis
    from core.config.document import ConfigDocument
    from core.runs.catalog.earlier import Origin
    from core.runs.record.store import Labels, Run
    from tui.jobs import JobPage


@dataclass(frozen=True)
class RunsInView:
    """Runs whose figures the list needs, and the run under its cursor."""

    runs: Sequence[Run]
    chosen: Run | None = None
    before: Run | None = None
    """The run that the chosen one is compared with."""
    others: Sequence[Run] = ()
    """Invisible runs whose figures the sort order needs."""


class ConfigurationRequests(Protocol):
    """Requests about the configuration."""

    def loaded(self, document: ConfigDocument) -> None:
        """Show a configuration that has been read from its file."""

    def edited(
        self,
        document: ConfigDocument,
        option: str = "",
        *,
        saved: str | None = None,
        origin: Origin | None = None,
        draft: str = "",
    ) -> None:
        """Update the app after an edit in the form; the document may be invalid.

        Args:
            document: The configuration.
            option: The changed option, ``section.key``; empty if any may have changed.
            saved: The text that needs no saving, mostly that of its file; None if unchanged.
            origin: The run that it was copied from; used only with ``saved``.
            draft: The id of the draft that it was just opened from.
        """

    def saved(self, document: ConfigDocument) -> None:
        """Note that the configuration was saved."""

    def analyzed(self, path: Path, analysis: Analysis | None) -> None:
        """Plan memory and time for the rows of a file; None while they are unknown."""

    def use_dataset(self, path: Path, use: Literal["train", "add", "eval"] = "train") -> None:
        """Train on a file, add it to the training files, or hold it out."""

    def choose_options(self, values: Mapping[str, Any], notice: str = "", path: Path | None = None) -> None:
        """Set options of the configuration; a save writes its file.

        Args:
            values: ``section.key`` to value; None for the default, a path as a :class:`~pathlib.Path`.
            notice: The notice shown afterwards.
            path: The file that they were chosen for; a new configuration begins if the present one does not name it.
        """

    def bring_back(self) -> None:
        """Go back to the previous configuration."""

    def open_data(self, path: Path) -> None:
        """Show the rows of a file in the Data pane."""

    def open_form(self, form: Literal["template", "columns"]) -> None:
        """Open the screen for choosing the template or the columns."""

    def edit_run(self, run: Run) -> None:
        """Open the configuration of a run as a new one."""


class StartRequests(Protocol):
    """Requests for new and continued runs."""

    def start_sample(self) -> None:
        """Offer a run of the sample data on the starter model."""

    def continue_run(self, asked: Run | None = None) -> None:
        """Offer to continue an ended run from its last checkpoint, or to train a finished one further; the shown one by
        default."""

    def learn_corrections(self, run: Run) -> None:
        """Offer to train an ended run further on the corrections of its chat."""


class RunRequests(Protocol):
    """Requests about a run: to show it, its results, and the trash."""

    def open(self, run: Run) -> None:
        """Show a run, and follow it if it is live."""

    def show_details(self, run: Run) -> None:
        """Show everything about a run."""

    def compare(self, runs: Sequence[Run]) -> None:
        """Show runs side by side."""

    def evaluate(self, run: Run | None) -> None:
        """Open the evaluation of a run's model and others on a file of prompts."""

    def export(self, run: Run, step: int | None = None) -> None:
        """Open the export screen; for the result or the newest checkpoint if ``step`` is None."""

    def take_result(self, run: Run, step: int | None) -> None:
        """Take a checkpoint as the result of a run; None for the result that the run wrote."""

    def delete(self, run: Run, size: int | None) -> None:
        """Delete a run after a confirmation; ``size`` in bytes if known."""

    def restore_last(self) -> None:
        """Restore the run that was deleted last."""

    def show_trash(self) -> None:
        """Show the runs in the trash."""

    def await_answer(self, waiting: bool) -> None:
        """Show or hide the note that a question to the model holds up the training."""


class RunThreads(Protocol):
    """Threads that read and change run directories."""

    def look_at(self, view: RunsInView) -> None:
        """Read the figures of these runs while the runs are listed."""

    def label(self, run: Run, change: Callable[[Labels], Labels], labeled: Callable[[Run, Labels], None]) -> None:
        """Change the present labels of a run; ``labeled`` gets the new ones."""


class ControlRequests(Protocol):
    """Requests to the worker of the shown run."""

    def request(self, command: str) -> None:
        """Send pause, resume, checkpoint, park, skip_evaluation or stop; withdraw it if it is already pending."""

    def change_settings(self, run: Run, settings: Mapping[str, Any]) -> None:
        """Change settings of a live run: ``section.key`` to value, as in ``set`` of the control protocol."""


class ServingRequests(Protocol):
    """Requests to the API server."""

    def request(self, target: Run | Path | str) -> None:
        """Serve a model to other programs; show the server if it is running."""


class JobRequests(Protocol):
    """Requests about jobs, which go on while the app is used."""

    def open(self, page: JobPage[Any, Any]) -> None:
        """Show a job; one that has not begun can be begun there."""

    def begin(self, page: JobPage[Any, Any]) -> None:
        """Begin a job, in a thread."""

    def follow(self, page: JobPage[Any, Any]) -> None:
        """List a job that the caller runs."""

    def changed(self, page: JobPage[Any, Any]) -> None:
        """Show news of a job soon; for any thread."""

    def cancel(self, page: JobPage[Any, Any]) -> None:
        """End a job before it is done."""


@runtime_checkable
class Shell(Protocol):
    """The app's interface: keys, glyphs, clock and state, read-only, and a controller for each kind of request."""

    keys: KeyTable
    """The key table with the user's changes."""
    glyphs: GlyphSet
    """The glyph set."""
    pace: float
    """Factor for the seconds between two updates of the screen: 1, or 2 for half the refresh rate."""
    clock: Callable[[], float]
    """The clock: the present, in Unix seconds."""
    state: AppState
    """The state: the configuration, the run and the devices."""

    @property
    def configuration(self) -> ConfigurationRequests:
        """The controller of the configuration."""

    @property
    def starting(self) -> StartRequests:
        """The controller of starts."""

    @property
    def runs(self) -> RunRequests:
        """The controller of runs."""

    @property
    def bridge(self) -> RunThreads:
        """The threads on run directories."""

    @property
    def run_control(self) -> ControlRequests:
        """The controller of the live run."""

    @property
    def serving(self) -> ServingRequests:
        """The controller of the server."""

    @property
    def jobs(self) -> JobRequests:
        """The controller of jobs."""

    async def first_painted(self) -> None:
        """Load everything that the first paint did not need."""

    def pane_shown(self, name: str, *, shown: bool) -> None:
        """Note that a pane was shown or hidden."""

    def can_run(self, key: Key) -> bool:
        """True if a key's action is available now."""

    async def run_key(self, key: Key) -> None:
        """Run a key's action, in the pane that it belongs to."""


def shell_of(node: DOMNode) -> Shell:
    """The shell of a widget or a screen.

    Raises:
        TypeError: If the app is not a shell.
    """
    app = node.app
    if not isinstance(app, Shell):
        raise TypeError(f"{type(app).__name__} is not a shell")
    return app


def copy_text(node: DOMNode, text: str, what: str, size: str = "") -> str:
    """Copy a text to the clipboard of the terminal; returns the notice, which fits half of 120 columns.

    Args:
        node: A widget or a screen.
        text: The text.
        what: Its name in the notice.
        size: Its size, if that is of interest.
    """
    # Without lone surrogates, which cannot be encoded.
    node.app.copy_to_clipboard(text.encode("utf-8", "replace").decode())
    note = "tmux needs set-clipboard on" if os.environ.get("TMUX") else size
    return f"✓ copied: {what}{f' ({note})' if note else ''}"
