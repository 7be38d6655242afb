"""Following a run to its end: events are shown as they come, and Ctrl-C is handled."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from core.commands.common import EXIT_INTERRUPTED, PROGRAM, note
from core.errors import UserError
from core.launch import launcher
from core.runs.control.client import ControlClient
from core.runs.outlook.time_left import Eta, Schedule, SteadyEta, estimate
from core.runs.record.events import Event, MemoryEvent
from core.runs.record.history import LogLine, RunHistory
from core.runs.record.state import EventTail, RunState
from core.runs.record.store import Run

POLL_SECONDS = 0.2
#: Seconds allowed for the last events after the end state.
GRACE_SECONDS = 2.0
#: Seconds allowed for a worker's start, until it can be asked to stop.
START_SECONDS = 60.0


class View(Protocol):
    """The display of a followed run."""

    def event(self, event: Event, log: list[LogLine], followed: Followed) -> None:
        """Show an event, which ``followed`` has applied already, and the log lines that it has added."""

    def tick(self, followed: Followed) -> None:
        """Show the state; called several times a second, after the new events."""

    def message(self, text: str) -> None:
        """Show a line of the command itself; may be called from another thread."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


@dataclass
class Followed:
    """The state of a run, as far as its events have been read."""

    run: Run
    state: RunState
    history: RunHistory = field(default_factory=RunHistory)
    peak_rss_bytes: int | None = None
    """Most memory that the worker process has held at once."""
    schedule: Schedule = field(init=False)
    """Its evaluations and checkpoints, by its configuration."""
    steady_eta: SteadyEta = field(default_factory=SteadyEta)
    """The time left as shown last."""

    def __post_init__(self) -> None:
        self.schedule = Schedule.of(self.run.values())

    def eta(self, now: float) -> Eta | None:
        """The time left at a Unix time; None while it is unknown."""
        schedule = self.schedule.changed(self.history.settings)
        return self.steady_eta.follow(estimate(self.history.timings, schedule, self.state.total_steps, now), now)

    def apply(self, event: Event) -> list[LogLine]:
        """Apply one event, and return the log lines that it adds."""
        before = self.history.log_count
        self.history.apply(event)
        if isinstance(event, MemoryEvent) and event.device == "cpu" and event.peak_bytes is not None:
            self.peak_rss_bytes = event.peak_bytes
        return self.history.log_since(before)


class Interrupts:
    """A counter of Ctrl-C instead of an exception, so that no read or line is cut in two."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        self._previous = signal.signal(signal.SIGINT, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _count(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1


def follow(
    run: Run, view: View, *, stop_on_interrupt: bool, skip_past: bool = False, interrupts: Interrupts | None = None
) -> Followed | None:
    """Follow a run until it is over.

    Args:
        run: The run.
        view: The display.
        skip_past: Whether past events are applied but not shown.
        stop_on_interrupt: Whether the first Ctrl-C asks the run to stop after a checkpoint, and only the second
            leaves; otherwise the first one leaves.
        interrupts: The counter, where it is active since before the run was started.

    Returns:
        The run at its end; None when the user left it running.
    """
    followed = Followed(run, run.state())
    tail = EventTail(run.events_path)
    over_since: float | None = None
    handled = 0
    if skip_past:
        for events in tail.batches():
            for event in events:
                followed.apply(event)
    try:
        with nullcontext(interrupts) if interrupts is not None else Interrupts() as counted:
            while True:
                launcher.reap()
                # The state is read first, so that all events before the end are read before the end is believed.
                followed.state = run.state()
                for batch in tail.batches():
                    for event in batch:
                        view.event(event, followed.apply(event), followed)
                    if counted.count > handled:
                        break
                view.tick(followed)
                if followed.state.is_over:
                    over_since = over_since or time.monotonic()
                    complete = followed.history.end is not None or followed.state.state == "lost"
                    if complete or time.monotonic() - over_since > GRACE_SECONDS:
                        return followed
                if counted.count > handled:
                    handled += 1
                    if handled > 1 or not stop_on_interrupt:
                        return None
                    view.message("Stopping after a checkpoint. Ctrl-C again returns at once; the run still stops.")
                    _request_stop(run, view.message)
                time.sleep(POLL_SECONDS)
    finally:
        view.close()


def _request_stop(run: Run, report: Callable[[str], None]) -> None:
    """Ask a run to stop, from a thread: a worker in the middle of a step answers late."""

    def ask() -> None:
        try:
            with ControlClient(run) as client:
                client.request("stop")
        except UserError:
            # The worker listens only once it has started; the signal means the same.
            try:
                launcher.terminate_when_begun(run, START_SECONDS)
            except UserError as error:
                report(str(error))

    threading.Thread(target=ask, daemon=True).start()


def leave(run: Run) -> int:
    """Print how to come back to a live run, and return the exit code."""
    note(f"{run.id} goes on. Come back with: {PROGRAM} watch {run.id}   (or {PROGRAM} --run {run.id})")
    return EXIT_INTERRUPTED
