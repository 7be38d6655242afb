"""Runner of the queue: starts the entries one after another, and follows each run to its end.

Each decision is on the disk before it is carried out, so the runner may be killed at any moment: an entry's run id is
written before the run is made, the run directory appears whole or not at all, and the lock that the worker inherits
shows whether a process was started. The next runner continues from there.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import ValidationError

from core.attribution.job import IndexJob, index_job
from core.config.document import ConfigDocument
from core.config.live import GOVERNED, changed
from core.config.schema import Config
from core.errors import UserError
from core.governor.limits import Limits
from core.jobs.job import JobCancelledError, JobProgress
from core.launch import launcher
from core.memory.plan import Machine, Plan
from core.queue import store
from core.queue.book import Queue
from core.queue.entry import FOLLOWS, NO_INDEX, EntryState, QueueEntry
from core.queue.estimate import Estimator
from core.queue.fate import Fate, continuable, find_fate, live_run, run_of
from core.queue.status import own_status
from core.queue.view import QueueReader
from core.runs.control.devices import occupant, run_devices, take_alone
from core.runs.record.history import read_history
from core.runs.record.state import END_STATES, RunState, boot_id, hostname
from core.runs.record.store import Run, complete_checkpoints, free_run_id, make_run
from core.text import one_line
from core.units import format_bytes

#: Starts in a row without a process after which an entry is given up.
MOST_STARTS = 5


def device_taken(config: Config) -> str | None:
    """The run that has the device, live or about to free its memory, in words; None if the device is free. Asks the
    driver.

    Args:
        config: Configuration of the run.
    """
    try:
        found = occupant(run_devices(config))
    except UserError:
        return None  # its worker reports the problem with the device
    return None if found is None else f"the device, which {found} has"


def lack_of_room(config: Config) -> str | None:
    """Why a run has to wait for GPU memory, in words; None if it can be started.

    A run that would not even fit into an empty card is started, as is a run that cannot be planned: its worker reports
    the remedy, while waiting would not help. Blocks: asks the driver, and reads the model's headers.

    Args:
        config: Configuration of the run.
    """
    if config.hardware.device == "cpu":
        return None
    from core.memory.strategy import chosen_strategy
    from core.models.find import locate_model
    from core.models.sandboxed import load_architecture
    from core.runs.outlook.forecast import cards_here, this_machine

    try:
        machine = this_machine(config)
        total = _card_bytes(config) if machine.kind == "cuda" else None
        if total is None or machine.limit_bytes is None:
            return None
        architecture = load_architecture(locate_model(config.model.base))
        cards = cards_here(config)
        return judge(machine, total, lambda there: chosen_strategy(architecture, config, there, cards=cards).plan)
    except UserError:
        return None


def judge(machine: Machine, total: int, plan: Callable[[Machine], Plan]) -> str | None:
    """The reason to wait, from a plan for the free memory and a plan for all memory of the card.

    Args:
        machine: The machine with its present free memory.
        total: Bytes of the card.
        plan: Plans the run for a machine.

    Raises:
        UserError: If it cannot be planned.
    """
    now = plan(machine)
    if now.fits is not False:
        return None
    empty = plan(replace(machine, limit_bytes=total))
    if empty.fits is False or machine.limit_bytes is None:
        return None
    needed, free = format_bytes(now.needed_bytes), format_bytes(machine.limit_bytes)
    return f"{needed} of GPU memory, of which {free} are free while other programs use it"


def _card_bytes(config: Config) -> int | None:
    from core.hardware.card import find_card

    card = find_card(gpu=config.hardware.gpu)
    return card.memory_total if card is not None else None


def unkept_limit(config: Config, now: float) -> str:
    """The option whose limit holds at a Unix time, and would not be kept by work without a governor; empty for none."""
    for name in ("temperature_limit_c", "memory_temperature_limit_c", "power_limit_w"):
        if getattr(config.hardware, name) is not None:
            return f"hardware.{name}"
    quiet = Limits.of(config).quiet
    return "night.quiet_hours" if quiet is not None and quiet.contains(now) else ""


@dataclass(frozen=True)
class Pace:
    """Seconds between two passes of the runner."""

    follow: float = 1.0
    """While a run is active."""
    soonest: float = 2.0
    """While it waits, at first; doubled each time."""
    latest: float = 30.0
    """While it waits, at most."""


class QueueRunner:
    """Runs the queue, one pass at a time, in the process that holds the runner's lock.

    Args:
        told: Receives each event as a sentence: an entry starts, ends, waits.
        ended: Receives each entry that has ended without a worker that reports it.
        room: Why a run has to wait for memory; None if it fits.
        index: Makes the job of a run's index.
        pace: Intervals between passes.
        release: Releases the runner's lock; called under the queue's lock when nothing waits.
    """

    def __init__(
        self,
        told: Callable[[str], None],
        ended: Callable[[QueueEntry], None] = lambda _: None,
        room: Callable[[Config], str | None] = lack_of_room,
        index: Callable[[Run], IndexJob] = index_job,
        pace: Pace | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._told, self._ended, self._room, self._index, self._release = told, ended, room, index, release
        self._pace = pace or Pace()
        self._wait = self._pace.soonest
        self._said, self._has_failed = "", False
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End after the present pass; the active run goes on."""
        self._stopped.set()

    def install_signals(self) -> None:
        """End on SIGTERM and SIGINT; ignore SIGHUP."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def run(self) -> bool:
        """Repeat passes until nothing waits (returns True) or it is stopped (False)."""
        while not self._stopped.is_set():
            seconds = self.tick()
            if seconds is None:
                return True
            self._stopped.wait(seconds)
        return False

    def tick(self) -> float | None:
        """Do one pass, with at most one step of an entry.

        Returns:
            Seconds until the next pass; None if nothing is left to do.
        """
        try:
            launcher.reap()
            queue = store.read_queue()
            if (active := queue.active) is not None:
                return self._tend(active)
            if queue.next_waiting is None:
                return self._finish()
            return self._begin(queue.next_waiting)
        except (UserError, OSError) as error:
            # A full disk or an unreadable file must not end the queue.
            return self._await(f"waits: {error}", None)
        except Exception as error:
            # A bug in one pass must not leave the device idle for the night.
            if not self._has_failed:
                traceback.print_exc()
            self._has_failed = True
            return self._await(f"waits: an internal error: {type(error).__name__}: {error}", None)

    def _tend(self, entry: QueueEntry) -> float:
        if entry.run is None:
            return self._end(entry, "failed", "the queue does not say which run it is")
        run = run_of(entry)
        fate = find_fate(run)
        if fate.kind == "absent" and entry.state == "running":
            return self._end(entry, "failed", "its run was deleted")
        if fate.kind in ("absent", "unstarted"):
            return self._start(entry, run)
        if fate.kind == "rebooted":
            return self._go_on(entry, run)
        if fate.kind == "ended":
            return self._conclude(entry, fate)
        return self._follow(entry, fate)

    def _start(self, entry: QueueEntry, run: Run) -> float:
        """Start the run of a starting entry, again if the runner was killed in between."""
        if entry.starts >= MOST_STARTS:
            return self._end(entry, "failed", f"{entry.starts} starts of its process came to nothing; see worker.log")
        try:
            own = store.read_entry_text(entry)
            text = self._text(entry, own)
        except UserError as error:
            return self._end(entry, "failed", error.message)
        run = make_run(run.id, text, own)
        recorded = RunState.read(run.state_path) or RunState(state="queued")
        # The heartbeat of a run that was made before a power cut is old; without a new one it would read as lost.
        replace(recorded, host=hostname(), updated=time.time()).write(run.state_path)
        # A start counts after all is written, as a full disk is no start, and before the launch, as this process may be
        # killed.
        entry = self._record(entry, starts=entry.starts + 1)
        launcher.launch(run, resume=bool(complete_checkpoints(run)), alone=True)
        self._say(f"entry {entry.id} is started as {run.id}", entry.id)
        return 0.0

    def _text(self, entry: QueueEntry, text: str) -> str:
        """The configuration of an entry's run: its own, with the limits of the night.

        Raises:
            UserError: If the queue cannot be read, or the configuration is no TOML.
        """
        night, now = store.read_queue().night, time.time()
        if not night.values:
            return text
        share = QueueReader(Estimator()).read(now).share(entry.run, now) if night.deadline is not None else None
        document = ConfigDocument(text)
        for name, value in night.for_run(now, share).items():
            document.set(name, value)
        if document.get("night.quiet_hours") is None:
            document.set("night.quiet_power_w", None)
        return document.dumps()

    def _follow(self, entry: QueueEntry, fate: Fate) -> float:
        state = fate.state
        if entry.state == "starting" and state is not None and state.pid is not None:
            begun = entry.begun if entry.begun is not None else time.time()
            self._record(entry, "running", begun=begun, starts=0)
        words = f" is {state.state}" if state is not None and not state.is_over else " is about to end"
        self._say(f"follows {entry.run}, which{words}", entry.id, keep=True)
        return self._pace.follow

    def _conclude(self, entry: QueueEntry, fate: Fate) -> float:
        state = fate.state
        if state is None:
            return self._end(entry, "failed", "nothing of its run can be read")
        if state.state == "finished":
            run = run_of(entry)
            if not state.refused and run.values().get("checkpoint.index") is True:
                return self._conclude_with_index(entry, run, state)
            reason = f"refused by eval.gate: {state.refused}" if state.refused else state.reason
            return self._end(entry, "done", reason, state)
        if state.state == "stopped":
            return self._end(entry, "done", state.reason or "it was stopped", state)
        reason, night = launcher.failure_reason(run_of(entry)), store.read_queue().night
        if any(name in reason for name, value in night.values.items() if value is not None):
            reason += " It is set in Tonight: 'n' in the queue, or 'localtune-tui queue night'."
        return self._end(entry, "failed", reason, state)

    def _conclude_with_index(self, entry: QueueEntry, run: Run, state: RunState) -> float:
        """Make the index of a finished run, once the device is free, and end its entry; blocks until then, or until
        the runner is stopped."""
        if not entry.is_indexing:
            ended = state.updated or time.time()
            to: EntryState | None = "running" if entry.state == "starting" else None
            entry = self._record(entry, to, outcome=state.state, ended=ended, reason=state.reason, starts=0)
        if (other := live_run()) is not None:
            return self._await(f"waits for {other.id}, then makes the index of {run.id}", entry.id)
        try:
            devices = run_devices(run.config())
        except UserError:
            devices = []  # its process reports the problem
        if (hold := take_alone(devices, f"the index of {run.id}")) is None:
            found = occupant(devices) or "another run"
            return self._await(f"waits for the device, which {found} has, then makes the index of {run.id}", entry.id)
        try:
            missing = self._make_index(entry, run)
        finally:
            hold.release()
        if self._stopped.is_set():
            return 0.0
        return self._end(entry, "done", "; ".join(filter(None, (state.reason, missing))), state)

    def _make_index(self, entry: QueueEntry, run: Run) -> str:
        """Make an index. Returns why there is none, or what it lacks; empty if it is whole, or the runner was
        stopped."""
        elsewhere, missing, looked = f"localtune-tui why {run.id} --index makes it", "", 0.0
        if entry.starts >= MOST_STARTS:
            return f"{NO_INDEX}was begun {entry.starts} times and not finished; {elsewhere}"

        def obstacle() -> str:
            """The reason not to make it, or not to go on with it; empty if there is none."""
            queue = store.read_queue()
            if queue.active is None or queue.active.id != entry.id:
                return f"{NO_INDEX}was given up"
            limit = unkept_limit(queue.night.applied(config), time.time())
            return f"{NO_INDEX}would not keep {limit}; {elsewhere}" if limit else ""

        def tell(progress: JobProgress) -> None:
            nonlocal looked, missing
            if self._stopped.is_set():
                raise JobCancelledError
            if (now := time.monotonic()) - looked < self._pace.follow:
                return
            looked = now
            if missing := obstacle():
                raise JobCancelledError
            count = f", {progress.done} of {progress.total}" if progress.done and progress.total else ""
            own_status(f"{doing}: {progress.activity}{count}", entry.id).write()

        doing = f"makes the index of {run.id}"
        try:
            settings = read_history(run).settings
            config = changed(run.config(), {name: value for name, value in settings.items() if name in GOVERNED})
            if missing := obstacle():
                return missing
            self._record(entry, starts=entry.starts + 1)
            self._say(doing, entry.id)
            return self._index(run).run(tell).note
        except JobCancelledError:
            if not missing:
                self._record(entry, starts=entry.starts)
        except UserError as error:
            return f"{NO_INDEX}could not be made: {error.message}"
        except ValidationError:
            return f"{NO_INDEX}would not keep limits that cannot be read; {elsewhere}"
        return missing

    def _go_on(self, entry: QueueEntry, run: Run) -> float:
        """Continue a run that a reboot has ended, once: from its checkpoint, or from the start without one."""
        here = boot_id()
        if entry.continued not in (None, here) or entry.starts >= MOST_STARTS:
            return self._end(entry, "failed", "the machine was started again, for the second time", run.state())
        if not continuable(run):
            if entry.continued is not None:
                return self._end(entry, "failed", "it was lost again before its first checkpoint", run.state())
            anew = free_run_id(entry.name, store.read_queue().reserved)
            self._record(entry, "starting" if entry.state == "running" else None, run=anew, continued=here, starts=0)
            self._say(f"entry {entry.id} starts anew as {anew}: a reboot ended {run.id} before a checkpoint", entry.id)
            return 0.0
        entry = self._record(entry, continued=here, starts=entry.starts + 1)
        launcher.continue_run(run, alone=True)
        self._say(f"{run.id} goes on from its checkpoint after a reboot", entry.id)
        return 0.0

    def _end(self, entry: QueueEntry, state: EntryState, reason: str, run_state: RunState | None = None) -> float:
        outcome = run_state.state if run_state is not None else ""
        ended = run_state.updated if run_state is not None and run_state.updated else time.time()
        recorded = self._record(entry, state, reason=one_line(reason, 500), outcome=outcome, ended=ended)
        self._wait = self._pace.soonest
        if recorded.state != state:
            return 0.0  # it was held at this moment
        self._say(f"entry {entry.id} is {state}{f': {reason}' if reason else ''}", None)
        if outcome not in END_STATES or run_state is None or run_state.pid is None:
            # A worker reports its own end.
            self._ended(replace(entry, state=state, reason=reason))
        return 0.0

    def _begin(self, entry: QueueEntry) -> float:
        if (other := live_run()) is not None:
            return self._await(f"waits for {other.id}, which is {other.state().state}", entry.id)
        try:
            config = store.read_queue().night.applied(store.read_entry_config(entry))
        except UserError as error:
            return self._end(entry, "skipped", str(error))
        if (reason := device_taken(config) or self._room(config)) is not None:
            return self._await(f"waits for {reason}", entry.id)
        self._wait = self._pace.soonest
        store.change(lambda queue: _claim(queue, entry.id))
        return 0.0

    def _finish(self) -> float | None:
        """Release the runner's lock, unless an entry was added at this moment."""
        with store.locked():
            if store.read_queue().next_waiting is not None:
                return 0.0
            self._release()
        return None

    def _record(self, entry: QueueEntry, state: EntryState | None = None, **changes: object) -> QueueEntry:
        """Write a changed entry; returns it."""

        def how(queue: Queue) -> Queue:
            present = queue.entry(entry.id)
            if state is None:
                return queue.with_entry(replace(present, **changes))  # type: ignore[arg-type]
            # An entry that was held at this moment, for instance, stays held.
            return queue.with_entry(present.moved(state, **changes)) if state in FOLLOWS[present.state] else queue

        return store.change(how).entry(entry.id)

    def _await(self, sentence: str, entry: int | None) -> float:
        self._say(sentence, entry, keep=True)
        seconds, self._wait = self._wait, min(2 * self._wait, self._pace.latest)
        return seconds

    def _say(self, sentence: str, entry: int | None, *, keep: bool = False) -> None:
        """Report an activity; with ``keep``, only if it is not the same as before."""
        if keep and sentence == self._said:
            return
        self._said = sentence
        own_status(sentence, entry).write()
        self._told(sentence)


def _claim(queue: Queue, entry_id: int) -> Queue:
    """The queue with the device and a run id given to an entry, if it is still the next and the device is free."""
    entry = queue.next_waiting
    if entry is None or entry.id != entry_id or queue.active is not None:
        return queue
    run = free_run_id(entry.name, queue.reserved)
    return queue.with_entry(entry.moved("starting", run=run, begun=time.time()))
