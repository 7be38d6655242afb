"""Bridge between core and the widgets: threads that read run directories, sample devices and talk to workers.

The threads touch no widget: they post their results, at most two a second, and the app's thread shows each with the
function that came with the request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from textual.app import App
from textual.message import Message

from core.errors import UserError
from core.paths import working_directory
from tui.panes import Panes
from tui.shell import RunsInView

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.config.schema import Config
    from core.hardware.snapshot import Device
    from core.runs.catalog.rows import RunFigures
    from core.runs.control.client import ControlClient
    from core.runs.control.protocol import Ways
    from core.runs.record.events import Event
    from core.runs.record.history import RunHistory
    from core.runs.record.state import Rank, RunState
    from core.runs.record.store import Labels, Run
    from tui.datasets.here import Here
    from tui.panes.runs import RunsPane
    from tui.session import Session

ValueT = TypeVar("ValueT")

#: Seconds between two polls of a live run, and of an ended run, which another process may continue.
LIVE_SECONDS, OVER_SECONDS = 0.5, 2.0
#: Seconds between two polls of a run with more events than fit in one message.
CATCH_UP_SECONDS = 0.1
#: Seconds between two samples of the devices, and between two scans of the list of runs.
SAMPLE_SECONDS, LIST_SECONDS = 5.0, 2.0
#: Seconds between two messages with figures, which may re-sort the list.
FIGURES_SECONDS = 0.3
#: Seconds that one listing spends on reading new runs.
FACTS_SECONDS = 0.1
#: Seconds for a worker to identify itself, and for a killed one to exit; freeing device memory takes a while.
SIGNAL_SECONDS, KILL_SECONDS = 5.0, 20.0


@dataclass
class Result(Message):
    """Result of a thread, for the controller or pane that asked for it."""

    show: Callable[[], object]
    """Shows it, in the app's thread."""
    newest: str = ""
    """The kind of results of which only the newest counts; empty if each counts."""

    def can_replace(self, message: Message) -> bool:
        """True for an older result of the same kind."""
        return isinstance(message, Result) and self.newest != "" and message.newest == self.newest


@dataclass(frozen=True)
class RunAttached:
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


@dataclass(frozen=True)
class RunAdvanced:
    """New events of the followed run since the last news."""

    run: Run
    state: RunState
    events: Sequence[Event]
    ranks: Sequence[Rank] = ()
    """Heartbeats of its processes, as in :class:`RunAttached`."""


RunNews = RunAttached | RunAdvanced


@dataclass(frozen=True)
class Command:
    """A command to the worker of a run; ``signal`` and ``kill`` are carried out from outside."""

    run: Run
    name: str
    args: Mapping[str, Any] = field(default_factory=dict)


class Bridge:
    """Threads of the app, started on request and ended with the app.

    Args:
        app: The app, in whose thread results are shown.
        panes: The panes; the list of runs is shown in one of them.
        ways: Names an action that helps after a refusal, for error messages.
        failed: Shows the failure of a user's request: title and error.
        pace: Factor for the seconds between two results of one kind.
    """

    def __init__(
        self, app: App[str], panes: Panes, ways: Ways, failed: Callable[[str, UserError], None], pace: float = 1.0
    ) -> None:
        self._app, self._panes, self._ways, self._failed, self._pace = app, panes, ways, failed, pace
        self._closing = threading.Event()
        self._following = threading.Event()
        self._listing = threading.Event()
        self._wanted = threading.Event()
        self._view = RunsInView(())
        self._clients: set[ControlClient] = set()
        self._guard, self._labeling = threading.Lock(), threading.Lock()
        self.sampling = True
        """True while devices are sampled here; a live worker reports them itself."""

    def close(self) -> None:
        """End all threads soon, without waiting for work in progress."""
        for event in (self._closing, self._following, self._listing, self._wanted):
            event.set()
        with self._guard:
            clients = list(self._clients)
        for client in clients:
            client.close()

    def _run(self, work: Callable[[], None], group: str) -> None:
        self._app.run_worker(work, thread=True, group=group, description=group)

    def _try(self, title: str, work: Callable[[], None], group: str) -> None:
        """Run an action that the user asked for, and show its failure."""

        def attempt() -> None:
            try:
                work()
            except UserError as error:
                self._tell(self._failed, title, error)

        self._run(attempt, group)

    def _tell(self, show: Callable[..., object], *args: object, newest: str = "") -> None:
        if not self._closing.is_set():
            self._app.post_message(Result(partial(show, *args), newest))

    def _list(self, show: Callable[[RunsPane, ValueT], object], value: ValueT, newest: str = "") -> None:
        """Show a value in the list of runs, if its pane is loaded by then."""

        def show_in_pane() -> None:
            if (pane := self._panes.runs) is not None:
                show(pane, value)

        self._tell(show_in_pane, newest=newest)

    def look_around(self, seen: Callable[[Here], None]) -> None:
        """Look for data files and earlier runs to start from."""

        def work() -> None:
            from tui.datasets.here import look_around

            self._tell(seen, look_around(working_directory()))

        self._run(work, "here")

    def load_config(self, path: Path | None, loaded: Callable[[ConfigDocument], None]) -> None:
        """Read a configuration, or begin a new one."""

        def work() -> None:
            from core.config.document import ConfigDocument

            try:
                self._tell(loaded, ConfigDocument.load(path) if path is not None else ConfigDocument())
            except UserError:
                # The app is useful without that file; the error is still reported.
                self._tell(loaded, ConfigDocument())
                raise

        self._try("The configuration cannot be opened", work, "load")

    def open_run(self, name: str, opened: Callable[[Run], None]) -> None:
        """Find a run by the user's name for it."""

        def work() -> None:
            from core.runs.record.store import find_run

            self._tell(opened, find_run(name))

        self._try("The run cannot be opened", work, "open")

    def stop_following(self) -> None:
        """Follow no run any more."""
        self._following.set()

    def find_run(self, found: Callable[[Run | None], None], session: Session | None = None) -> None:
        """Find the run to show: a live one, or else the session's or the newest; None where there is none."""

        def work() -> None:
            from tui.reopening import find_shown

            self._tell(found, find_shown(session))

        self._run(work, "find")

    def follow(self, run: Run, show: Callable[[RunNews], None], *, found: bool = False) -> None:
        """Read a run from its beginning and follow it, instead of the run followed before."""
        self._following.set()
        self._following = stop = threading.Event()
        if self._closing.is_set():
            stop.set()
        post = partial(self._tell, show)
        self._run(partial(follow_run, run, post, stop, found=found, pace=self._pace), "follow")

    def sample_devices(self, sampled: Callable[[Sequence[Device]], None]) -> None:
        """Sample the devices every few seconds, while ``sampling`` is set."""

        def work() -> None:
            from core.hardware.sampler import snapshot

            while not self._closing.is_set():
                if self.sampling:
                    self._tell(sampled, snapshot(), newest="devices")
                self._closing.wait(SAMPLE_SECONDS * self._pace)

        self._run(work, "sample")

    def list_runs(self, on: bool) -> None:
        """List the runs every few seconds, or stop listing them."""
        self._listing.set()
        self._wanted.set()
        if not on or self._closing.is_set():
            return
        self._listing = stop = threading.Event()

        def work() -> None:
            from core.runs.catalog.rows import RunCatalog

            catalog = RunCatalog(is_cached=True)
            while not stop.is_set():
                self._list(lambda pane, rows: pane.show(rows), catalog.rows(FACTS_SECONDS), newest="rows")
                stop.wait(LIST_SECONDS * self._pace if catalog.is_whole else CATCH_UP_SECONDS)

        self._run(work, "list")
        self._run(partial(self._read_figures, stop), "figures")
        self._run(partial(self._read_queue, stop), "queue")

    def _read_queue(self, stop: threading.Event) -> None:
        """Read the queue, if there is one, while the runs are listed."""
        from core.queue.store import queue_path

        while not queue_path().exists():
            if stop.wait(LIST_SECONDS * self._pace):
                return
        from core.queue.estimate import Estimator
        from core.queue.view import QueueReader

        reader = QueueReader(Estimator())
        while not stop.is_set():
            # The queue's screen reports its errors.
            with suppress(UserError):
                self._list(lambda pane, view: pane.show_queue(view), reader.read(), newest="queue")
            stop.wait(LIST_SECONDS * self._pace)

    def look_at(self, view: RunsInView) -> None:
        """Read the figures of these runs from now on, while the runs are listed."""
        self._view = view
        self._wanted.set()

    def _read_figures(self, stop: threading.Event) -> None:
        """Read the figures of each visible run, the run under the cursor first, and again when it changes."""
        from core.runs.catalog.result import read_detail
        from core.runs.catalog.rows import FigureReader, rest_after

        reader = FigureReader(is_cached=True)
        shown: dict[str, RunFigures] = {}
        accounted: tuple[object, ...] = ()
        rest = 0.0
        while not stop.is_set():
            self._wanted.clear()
            view = self._view
            if (run := view.chosen) is not None:
                wish, now = (run, view.before, reader.stamp(run)), time.monotonic()
                if wish[:2] != accounted[:2] or (wish != accounted and now >= rest):
                    self._list(lambda pane, detail: pane.show_detail(detail), read_detail(run, view.before))
                    accounted, rest = wish, rest_after(now)
            fresh: dict[str, RunFigures] = {}
            told = time.monotonic()
            for run in [*view.runs, *view.others]:
                if stop.is_set() or self._wanted.is_set():
                    break
                if shown.get(run.id) != (figures := reader.read(run)):
                    shown[run.id] = fresh[run.id] = figures
                if fresh and time.monotonic() - told >= FIGURES_SECONDS:
                    self._list(lambda pane, figures: pane.show_figures(figures), fresh)
                    fresh, told = {}, time.monotonic()
            if fresh:
                self._list(lambda pane, figures: pane.show_figures(figures), fresh)
            self._wanted.wait(LIST_SECONDS * self._pace)
        reader.save()

    def label(self, run: Run, change: Callable[[Labels], Labels], labeled: Callable[[Run, Labels], None]) -> None:
        """Change the labels of a run; changes that another program wrote meanwhile are kept."""

        def work() -> None:
            from core.runs.record.store import read_labels, write_labels

            with self._labeling:
                labels = change(read_labels(run.path))
                write_labels(run.path, labels)
            self._tell(labeled, run, labels)

        self._try("The labels could not be written", work, "label")

    def restore_last(self, restored: Callable[[Run], None]) -> None:
        """Restore the run that was deleted last."""

        def work() -> None:
            from core.runs.catalog.removal import list_trash, restore_run

            trash = list_trash()
            if not trash:
                raise UserError("The trash is empty.", "Runs that are deleted for good are not in it.")
            self._tell(restored, restore_run(trash[0]))

        self._try("The run could not be restored", work, "delete")

    def delete(self, run: Run, deleted: Callable[[Run], None], *, now: bool) -> None:
        """Move an ended run to the trash, or delete it for good."""

        def work() -> None:
            from core.runs.catalog.removal import remove_run, trash_run

            if now:
                remove_run(run)
            else:
                trash_run(run)
            self._tell(deleted, run)

        self._try("The run could not be deleted", work, "delete")

    def start(self, config: Config, name: str, started: Callable[[Run], None]) -> None:
        """Start a run of a validated configuration."""

        def work() -> None:
            from core.launch.launcher import start_run

            self._tell(started, start_run(config, name))

        self._try("The run could not be started", work, "start")

    def start_sample(self, started: Callable[[Run], None], failed: Callable[[], None]) -> None:
        """Start a run of the sample data; ``failed`` is called if it cannot be started."""

        def work() -> None:
            import sample_data
            from core.config.document import ConfigDocument
            from core.launch.launcher import start_run

            try:
                config = ConfigDocument.load(sample_data.path("tickets.toml")).validate()
                self._tell(started, start_run(config, "tickets"))
            except UserError:
                self._tell(failed)
                raise

        self._try("The sample could not be started", work, "start")

    def continue_run(self, run: Run, started: Callable[[Run], None]) -> None:
        """Continue an ended run."""

        def work() -> None:
            from core.launch.launcher import continue_run

            continue_run(run)
            self._tell(started, run)

        self._try("The run could not be continued", work, "start")

    def control(
        self,
        command: Command,
        answered: Callable[[Command, Mapping[str, Any]], None],
        refused: Callable[[Command, UserError], None],
    ) -> None:
        """Send a command to the worker of a run."""

        def work() -> None:
            from core.runs.control.client import ControlClient

            client = ControlClient(command.run, ways=self._ways)
            with self._guard:
                self._clients.add(client)
            try:
                if not self._closing.is_set():
                    self._tell(answered, command, client.request(command.name, **command.args))
            except UserError as error:
                self._tell(refused, command, error)
            finally:
                with self._guard:
                    self._clients.discard(client)
                client.close()

        self._run(work, "control")

    def end(self, command: Command, done: Callable[[Command, Mapping[str, Any]], None]) -> None:
        """End a worker whose socket does not answer: ``signal`` to stop it after a checkpoint, or ``kill``."""

        def work() -> None:
            from core.launch.launcher import kill, terminate_when_begun

            if command.name == "kill":
                kill(command.run, KILL_SECONDS)
            else:
                terminate_when_begun(command.run, SIGNAL_SECONDS)
            self._tell(done, command, {})

        titles = {"signal": "The run could not be told to stop", "kill": "The process could not be killed"}
        self._try(titles[command.name], work, "control")


def follow_run(
    run: Run, post: Callable[[RunNews], object], stop: threading.Event, *, found: bool = False, pace: float = 1.0
) -> None:
    """Read a run and post its events, until ``stop`` is set.

    First comes a :class:`RunAttached` with the whole history, preceded by a partial one if reading takes long; the
    receiver owns these histories. Then a :class:`RunAdvanced` follows for every change. It has the events of one chunk
    of the file, so memory stays bounded for long histories.

    Args:
        run: The run.
        post: Takes the news; called in this thread.
        stop: Ends the loop.
        found: Whether the app found the run by itself.
        pace: Factor for the seconds between two polls.
    """
    from core.launch.launcher import reap
    from core.runs.record.history import RunHistory, read_glimpse
    from core.runs.record.state import EventTail, read_ranks

    tail, history = EventTail(run.events_path), RunHistory()
    shown = run.state()
    if (glimpse := read_glimpse(run)) is not None:
        post(RunAttached(run, shown, glimpse, found, is_partial=True))
    for events in tail.batches():
        for event in events:
            history.apply(event)
        if stop.is_set():
            return
    history.skipped = tail.skipped
    signs = read_ranks(run.path)
    post(RunAttached(run, shown, history, found, ranks=signs))
    wait = OVER_SECONDS if shown.is_over else LIVE_SECONDS
    while not stop.wait(wait * pace):
        reap()
        state = run.state()
        events, is_more = tail.poll(), tail.is_behind
        # The end is not posted before the events that lead to it.
        state = shown if is_more and state.is_over else state
        wait = CATCH_UP_SECONDS if is_more else OVER_SECONDS if state.is_over else LIVE_SECONDS
        before, signs = signs, signs if state.is_over else read_ranks(run.path)
        if events or signs != before or _shown(shown) != _shown(state):
            post(RunAdvanced(run, state, events, signs))
        shown = state


def _shown(state: RunState) -> tuple[object, ...]:
    """Everything of a state but the heartbeat."""
    return state.state, state.reason, state.step, state.total_steps, state.pending, state.progress
