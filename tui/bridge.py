"""Bridge between core and the widgets: threads that read run directories, sample devices and talk to workers.

The threads touch no widget; they post messages to the app, at most two a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App
from textual.message import Message

from core.errors import UserError
from core.paths import working_directory
from tui import messages
from tui.shell import RunsInView

if TYPE_CHECKING:
    from core.config.schema import Config
    from core.runs.catalog.rows import RunFigures
    from core.runs.control.client import ControlClient
    from core.runs.control.protocol import Ways
    from core.runs.record.state import RunState
    from core.runs.record.store import Labels, Run
    from tui.session import Session

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


class Bridge:
    """Threads of the app, started on request and ended with the app.

    Args:
        app: The app, which gets the messages.
        ways: Names an action that helps after a refusal, for error messages.
        pace: Factor for the seconds between two messages of one kind.
    """

    def __init__(self, app: App[str], ways: Ways, pace: float = 1.0) -> None:
        self._app, self._ways, self._pace = app, ways, pace
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
        """Run an action that the user asked for; a failure becomes a message."""

        def attempt() -> None:
            try:
                work()
            except UserError as error:
                self._post(messages.ActionFailed(title, error))

        self._run(attempt, group)

    def _post(self, message: Message) -> None:
        if not self._closing.is_set():
            self._app.post_message(message)

    def look_around(self) -> None:
        """Look for data files and earlier runs to start from."""

        def work() -> None:
            from tui.datasets.here import look_around

            self._post(messages.SurroundingsSeen(look_around(working_directory())))

        self._run(work, "here")

    def load_config(self, path: Path | None) -> None:
        """Read a configuration, or begin a new one."""

        def work() -> None:
            from core.config.document import ConfigDocument

            try:
                self._post(messages.ConfigLoaded(ConfigDocument.load(path) if path is not None else ConfigDocument()))
            except UserError:
                # The app is useful without that file; the error is still reported.
                self._post(messages.ConfigLoaded(ConfigDocument()))
                raise

        self._try("The configuration cannot be opened", work, "load")

    def open_run(self, name: str) -> None:
        """Find a run by the user's name for it, and follow it."""

        def work() -> None:
            from core.runs.record.store import find_run

            run = find_run(name)
            self._app.call_from_thread(self.follow, run)

        self._try("The run cannot be opened", work, "open")

    def stop_following(self) -> None:
        """Follow no run any more."""
        self._following.set()

    def find_run(self, session: Session | None = None) -> None:
        """Follow the newest live run, else the run of the last session, else the newest run.

        :class:`~tui.messages.NoRunFound` where there is none.
        """

        def work() -> None:
            from tui.reopening import find_shown

            run = find_shown(session)
            if run is None:
                self._post(messages.NoRunFound())
            else:
                self._app.call_from_thread(partial(self.follow, run, found=True))

        self._run(work, "find")

    def follow(self, run: Run, *, found: bool = False) -> None:
        """Read a run from its beginning and follow it, instead of the run followed before."""
        self._following.set()
        self._following = stop = threading.Event()
        if self._closing.is_set():
            stop.set()
        self._run(partial(follow_run, run, self._post, stop, found=found, pace=self._pace), "follow")

    def sample_devices(self) -> None:
        """Sample the devices every few seconds, while ``sampling`` is set."""

        def work() -> None:
            from core.hardware.sampler import snapshot

            while not self._closing.is_set():
                if self.sampling:
                    self._post(messages.DevicesSampled(snapshot()))
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
                self._post(messages.RunsListed(catalog.rows(FACTS_SECONDS)))
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
                self._post(messages.QueueListed(reader.read()))
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
                    self._post(messages.RunDetailRead(read_detail(run, view.before)))
                    accounted, rest = wish, rest_after(now)
            fresh: dict[str, RunFigures] = {}
            told = time.monotonic()
            for run in [*view.runs, *view.others]:
                if stop.is_set() or self._wanted.is_set():
                    break
                if shown.get(run.id) != (figures := reader.read(run)):
                    shown[run.id] = fresh[run.id] = figures
                if fresh and time.monotonic() - told >= FIGURES_SECONDS:
                    self._post(messages.RunFiguresRead(fresh))
                    fresh, told = {}, time.monotonic()
            if fresh:
                self._post(messages.RunFiguresRead(fresh))
            self._wanted.wait(LIST_SECONDS * self._pace)
        reader.save()

    def label(self, run: Run, change: Callable[[Labels], Labels]) -> None:
        """Change the labels of a run; changes that another program wrote meanwhile are kept."""

        def work() -> None:
            from core.runs.record.store import read_labels, write_labels

            with self._labeling:
                labels = change(read_labels(run.path))
                write_labels(run.path, labels)
            self._post(messages.RunLabeled(run, labels))

        self._try("The labels could not be written", work, "label")

    def restore_last(self) -> None:
        """Restore the run that was deleted last."""

        def work() -> None:
            from core.runs.catalog.removal import list_trash, restore_run

            trash = list_trash()
            if not trash:
                raise UserError("The trash is empty.", "Runs that are deleted for good are not in it.")
            self._post(messages.RunRestored(restore_run(trash[0])))

        self._try("The run could not be restored", work, "delete")

    def delete(self, run: Run, *, now: bool) -> None:
        """Move an ended run to the trash, or delete it for good."""

        def work() -> None:
            from core.runs.catalog.removal import remove_run, trash_run

            if now:
                remove_run(run)
            else:
                trash_run(run)
            self._post(messages.RunDeleted(run, in_trash=not now))

        self._try("The run could not be deleted", work, "delete")

    def start(self, config: Config, name: str) -> None:
        """Start a run of a validated configuration."""

        def work() -> None:
            from core.launch.launcher import start_run

            self._post(messages.RunStarted(start_run(config, name)))

        self._try("The run could not be started", work, "start")

    def start_sample(self) -> None:
        """Start a run of the sample data."""

        def work() -> None:
            import sample_data
            from core.config.document import ConfigDocument
            from core.launch.launcher import start_run

            config = ConfigDocument.load(sample_data.path("tickets.toml")).validate()
            self._post(messages.RunStarted(start_run(config, "tickets")))

        self._try("The sample could not be started", work, "start")

    def continue_run(self, run: Run) -> None:
        """Continue an ended run."""

        def work() -> None:
            from core.launch.launcher import continue_run

            continue_run(run)
            self._post(messages.RunStarted(run))

        self._try("The run could not be continued", work, "start")

    def control(self, run: Run, command: str, **args: Any) -> None:
        """Send a command and its arguments to the worker of a run."""

        def work() -> None:
            from core.runs.control.client import ControlClient

            client = ControlClient(run, ways=self._ways)
            with self._guard:
                self._clients.add(client)
            try:
                if not self._closing.is_set():
                    answer = client.request(command, **args)
                    self._post(messages.ControlAnswered(run, command, args, answer))
            except UserError as error:
                self._post(messages.ControlFailed(run, command, error, args))
            finally:
                with self._guard:
                    self._clients.discard(client)
                client.close()

        self._run(work, "control")

    def signal(self, run: Run) -> None:
        """Signal a worker whose socket does not answer, to stop it after a checkpoint."""

        def work() -> None:
            from core.launch.launcher import terminate_when_begun

            terminate_when_begun(run, SIGNAL_SECONDS)
            self._post(messages.ControlAnswered(run, "signal"))

        self._try("The run could not be told to stop", work, "control")

    def kill(self, run: Run) -> None:
        """Kill the process of a run."""

        def work() -> None:
            from core.launch.launcher import kill

            kill(run, KILL_SECONDS)
            self._post(messages.ControlAnswered(run, "kill"))

        self._try("The process could not be killed", work, "control")


def follow_run(
    run: Run, post: Callable[[Message], object], stop: threading.Event, *, found: bool = False, pace: float = 1.0
) -> None:
    """Read a run and post its events, until ``stop`` is set.

    First comes a :class:`~tui.messages.RunAttached` with the whole history, preceded by a partial one if reading takes
    long; the receiver owns these histories. Then a :class:`~tui.messages.RunAdvanced` follows for every change. A
    message has the events of one chunk of the file, so memory stays bounded for long histories.

    Args:
        run: The run.
        post: Takes the messages; called in this thread.
        stop: Ends the loop.
        found: Whether the app found the run by itself.
        pace: Factor for the seconds between two polls.
    """
    from core.launch.launcher import reap
    from core.runs.record.history import RunHistory, read_glimpse
    from core.runs.record.state import read_ranks
    from core.runs.record.tail import EventTail

    tail, history = EventTail(run.events_path), RunHistory()
    shown = run.state()
    if (glimpse := read_glimpse(run)) is not None:
        post(messages.RunAttached(run, shown, glimpse, found, is_partial=True))
    for events in tail.batches():
        for event in events:
            history.apply(event)
        if stop.is_set():
            return
    history.skipped = tail.skipped
    signs = read_ranks(run.path)
    post(messages.RunAttached(run, shown, history, found, ranks=signs))
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
            post(messages.RunAdvanced(run, state, events, signs))
        shown = state


def _shown(state: RunState) -> tuple[object, ...]:
    """Everything of a state but the heartbeat."""
    return state.state, state.reason, state.step, state.total_steps, state.pending, state.progress
