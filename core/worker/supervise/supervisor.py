"""The supervisor of a run of several processes: ``python -m core.worker RUN`` becomes it before torch is imported.

Its pid is the run's, and it holds the run's lock. It starts the processes of the run, of which the first is a worker
like that of any run; passes stop signals on to that one; and when a process is lost, ends all and starts them again
from the last checkpoint, so often at most as ``distributed.restarts`` says. A process that waits for others runs no
handler of a signal, and one that is suspended none at all: they are ended by SIGKILL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal

from core.config.derived import wants_several
from core.config.schema import Config
from core.errors import UserError
from core.hardware.run_cards import process_cards
from core.launch.launcher import AGENT_VARIABLES
from core.notify import Notice, notify
from core.runs.control.devices import Hold
from core.runs.record.events import Event, FailedEvent, FinishedEvent, NoticeEvent, StoppedEvent
from core.runs.record.files import append_events, append_while_open
from core.runs.record.sentences import sender
from core.runs.record.state import EXIT_CODES, RunState
from core.runs.record.store import Run, complete_checkpoints, way_on
from core.worker.process.awake import AwakeClock
from core.worker.process.control import STOP_SIGNALS
from core.worker.process.devices import shared_device
from core.worker.process.log import log
from core.worker.supervise.away import machine_away
from core.worker.supervise.compared import compare_for, seen_to_live
from core.worker.supervise.process import RankProcess, Start
from core.worker.supervise.signs import RankSigns
from core.worker.supervise.starts import Starts, local_starts, spread_starts
from core.worker.supervise.verdict import Ended, Lost, Refused, Verdict, judge

#: Seconds between two looks when nothing happens.
_LOOK_SECONDS = 0.5
#: Seconds between two looks that are counted at most: in more, this process was suspended and could hear nobody.
_MISSED_SECONDS = 2.0
#: Seconds between two looks for a machine that is away.
_AWAY_SECONDS = 5.0
#: Seconds that the end of a lost process may take to be known after that of those who noticed.
_SETTLE_SECONDS = 2.0
#: Seconds that the others may take to end after the first one has recorded the end, and after one is lost.
_GRACE_SECONDS, _LOST_SECONDS = 5.0, 1.0

#: What each process is called, and what it has said last.
Words = dict[int, tuple[str, str]]


@dataclass
class Supervisor:
    """Supervises one run.

    Args:
        run: The run.
        config: Its configuration.
        lock: Descriptor of the worker lock.
        starts: How its processes are started.
    """

    run: Run
    config: Config
    lock: int
    starts: Starts
    prepare: Callable[[], None] = lambda: None
    """What comes before the first start; may raise a UserError."""
    devices: Hold = field(default_factory=Hold)
    """The devices of the processes of this machine, which they hold too."""
    away: Callable[[Callable[[], bool]], UserError | None] = lambda _: None
    """Why a machine of the run cannot be used just now; asked before every new start, and told whether a stop was asked
    for meanwhile."""
    _stops: list[signal.Signals] = field(default_factory=list, init=False)
    _wake: int = field(default=-1, init=False)
    _awake: AwakeClock = field(default_factory=lambda: AwakeClock(_MISSED_SECONDS), init=False)
    """By which silence is measured."""

    def supervise(self, options: Sequence[str]) -> int | list[str]:
        """Carry the run out.

        Args:
            options: Those that the worker was started with.

        Returns:
            The exit code, or the options of the worker that the run goes on as.
        """
        with self._hearing_stops():
            try:
                if self.devices.beside:
                    self._tell(shared_device(self.devices.beside))
                self.prepare()
                return self._go_through(options)
            except UserError as error:
                return self._fail(error.message, error.hint)

    def _go_through(self, options: Sequence[str]) -> int | list[str]:
        """Start the processes, again where one was lost, until the run has ended.

        Raises:
            UserError: If they cannot be started.
        """
        restarts = 0
        while True:
            away = self._wait_for_machines() if restarts else None
            if self._stops:
                return self._stopped()
            if away is None:
                verdict, words = self._attempt(restarts, options)
                if isinstance(verdict, Ended):
                    return verdict.code if verdict.following is None else list(verdict.following)
                if isinstance(verdict, Refused) and (verdict.has_met or not restarts):
                    return self._fail(verdict.error, verdict.hint)
                sentence = _sentence(verdict, words)
            else:
                sentence = away.message.rstrip(".")
            if self._stops:
                # New processes would have nothing to do but to stop.
                self._tell(NoticeEvent(level="warning", code="rank_lost", message=f"{sentence}.", hint=""))
                return self._stopped()
            if restarts >= self.config.distributed.restarts:
                again = "" if not restarts else f", after {restarts} new starts" if restarts > 1 else ", again"
                return self._fail(f"{sentence}{again}", way_on(self.run))
            restarts += 1
            options = self._begin_again(sentence, restarts)

    def _wait_for_machines(self) -> UserError | None:
        """Wait for a machine that is away, as long as the processes wait for each other; what is wrong with it if it
        has not come back by then. None when all are there, or a stop was asked for."""
        recorded = RunState.read(self.run.state_path) or RunState(state="starting", pid=os.getpid())
        waits = dataclasses.replace(recorded, socket=None, step_started=None, pending=(), progress=None)
        with seen_to_live(self.run, waits):
            away = self.away(self._is_stopped)
            return None if away is None or self._stops else self._wait_for(away)

    def _wait_for(self, away: UserError) -> UserError | None:
        """Wait for the machine that is away."""
        seconds = self.config.distributed.timeout
        message = f"{away.message} The run waits for that machine, {seconds:.0f} s at most."
        self._tell(NoticeEvent(level="warning", code="machine_away", message=message, hint=away.hint))
        stopped, deadline = select.poll(), time.monotonic() + seconds
        stopped.register(self._wake, select.POLLIN)
        still: UserError | None = away
        while still is not None and not self._stops and time.monotonic() < deadline:
            stopped.poll(1000 * _AWAY_SECONDS)
            still = self.away(self._is_stopped)
        return still

    def _is_stopped(self) -> bool:
        return bool(self._stops)

    def _attempt(self, number: int, options: Sequence[str]) -> tuple[Verdict, Words]:
        """Start all processes and wait for a verdict, with what each is called and has said last."""
        meeting = self.run.path / f".meeting-{os.getpid()}-{number}"
        meeting.unlink(missing_ok=True)
        before = RunState.read(self.run.state_path)
        processes: list[RankProcess] = []
        try:
            for start in self.starts(options, meeting):
                processes.append(self._start(start))
            verdict = self._watch(processes)
            grace = _GRACE_SECONDS if isinstance(verdict, Ended) else _LOST_SECONDS
        except BaseException:
            grace = 0.0
            raise
        finally:
            deadline = time.monotonic() + grace
            gone = [process.end(max(deadline - time.monotonic(), 0.0)) for process in processes]
            self._pass_on(processes)
            words: Words = {process.rank: (process.start.label, process.last_words()) for process in processes}
            for process in processes:
                process.close()
            meeting.unlink(missing_ok=True)
        if isinstance(verdict, Ended):
            return verdict, words
        if (code := self._recorded_end(before)) is not None:
            # What became of a process after that, in a driver that it left, changes nothing.
            return Ended(code), words
        if not all(gone):
            # Whoever it is waits for a driver or a disk; another set of processes would share its device with it.
            label = words[gone.index(False)][0]
            verdict = Refused(gone.index(False), f"{label} does not end: it waits for a device or a disk", "Reboot.")
        return verdict, words

    def _start(self, start: Start) -> RankProcess:
        """A process of the run.

        Raises:
            UserError: If it cannot be started.
        """
        try:
            return RankProcess(start, self.lock, self.devices.descriptors, lambda: self._awake.seconds)
        except OSError as error:
            raise UserError(
                f"{start.label} cannot be started: {error.strerror or error}.",
                "Look at the disk of the run, and at the limits of processes and open files.",
            ) from error

    def _recorded_end(self, before: RunState | None) -> int | None:
        """The exit code of the end that the first process has recorded; None where it has not.

        Args:
            before: The state before it was started, which may be the end of an earlier one.
        """
        state = RunState.read(self.run.state_path)
        return None if state is None or state == before else state.exit_code

    def _watch(self, processes: Sequence[RankProcess]) -> Verdict:
        poll = select.poll()
        for process in processes:
            poll.register(process.reading, select.POLLIN)
            poll.register(process.handle, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        lost_since: float | None = None
        sent, record = 0, RankSigns(self.run)
        while True:
            for descriptor, _ in poll.poll(1000 * _LOOK_SECONDS):
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 64)
            self._awake.tick()
            for process in processes:
                process.listen()
            self._pass_on(processes)
            if processes[0].has_begun:
                for number in self._stops[sent:]:
                    processes[0].signal(number)
                sent = len(self._stops)
            signs = [process.sign() for process in processes]
            record.keep(signs)
            if lost_since is None and any(sign.has_lost for sign in signs):
                lost_since = self._awake.seconds
            settled = lost_since is not None and self._awake.seconds - lost_since >= _SETTLE_SECONDS
            if (verdict := judge(signs, self.config.distributed.timeout, settled=settled)) is not None:
                return verdict
            _forget_ended(poll, processes)

    def _pass_on(self, processes: Sequence[RankProcess]) -> None:
        """Tell the warnings of processes that write no record, as long as the first one has not closed it."""
        for notice in [notice for process in processes for notice in process.take_notices()]:
            self._tell(notice, append_while_open)

    def _begin_again(self, sentence: str, number: int) -> list[str]:
        """Tell that all starts again; returns the options for that."""
        state = RunState.read(self.run.state_path)
        found = complete_checkpoints(self.run)
        where = f"goes on from {found[-1].name}" if found else "begins again"
        of = self.config.distributed.restarts
        message = f"{sentence}. The run {where}, by new processes ({number} of {of} times)."
        self._tell(NoticeEvent(level="warning", code="rank_lost", message=message, hint=""))
        # A pause of the governor's has a reason, and ends with it.
        paused = state is not None and state.state == "paused" and not state.reason
        return [*(["--resume"] if found else []), *(["--paused"] if paused else [])]

    def _fail(self, reason: str, hint: str) -> int:
        """Record that the run has failed, as its first process cannot."""
        return self._end("failed", FailedEvent, reason if reason.endswith((".", ")")) else f"{reason}.", hint)

    def _stopped(self) -> int:
        """Record that the run was stopped while it had no processes."""
        step = (RunState.read(self.run.state_path) or RunState(state="starting")).step
        by = sender(self._stops[0].name)
        return self._end("stopped", StoppedEvent, f"stopped {by} after step {step}", way_on(self.run))

    def _end(self, state: Literal["failed", "stopped"], kind: type[FinishedEvent], reason: str, hint: str) -> int:
        """Record the end of the run; its exit code."""
        recorded = RunState.read(self.run.state_path) or RunState(state="starting", pid=os.getpid())
        found = complete_checkpoints(self.run)
        adapter = str((found[-1] / "adapter").relative_to(self.run.path)) if found else None
        self._tell(kind(reason=reason, step=recorded.step, adapter=adapter, hint=hint))
        over = dataclasses.replace(recorded, state=state, reason=reason, socket=None, step_started=None, pending=())
        try:
            dataclasses.replace(over, updated=time.time(), progress=None).write(self.run.state_path)
        except OSError as error:
            log(f"error: {self.run.state_path} cannot be written: {error.strerror}")
        notify(Notice(state, reason, self.run.id))
        return EXIT_CODES[state]

    def _tell(self, event: Event, append: Callable[[Run, Event], object] = append_events) -> None:
        try:
            append(self.run, event)
        except UserError as error:
            log(f"error: {error}")
        if isinstance(event, NoticeEvent):
            log(f"{event.level}: {event.message} {event.hint}".rstrip())
        elif isinstance(event, FailedEvent):
            log(f"error: {event.reason} {event.hint}".rstrip())

    @contextlib.contextmanager
    def _hearing_stops(self) -> Iterator[None]:
        """Inside, signals that ask for a stop are kept for the first process; SIGHUP means nothing."""

        def keep(number: int, _frame: FrameType | None) -> None:
            self._stops.append(signal.Signals(number))

        self._wake, writing = os.pipe()
        for descriptor in (self._wake, writing):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writing)
        before = {number: signal.signal(number, keep) for number in STOP_SIGNALS}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Where it is ignored, the kernel forgets how a process has ended.
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake)
            os.close(writing)


def _forget_ended(poll: select.poll, processes: Sequence[RankProcess]) -> None:
    """Do not poll processes that have ended: their descriptors are readable for good."""
    for process in processes:
        if process.sign().status is not None:
            for descriptor in (process.reading, process.handle):
                with contextlib.suppress(KeyError, OSError):
                    poll.unregister(descriptor)


def _sentence(lost: Lost | Refused, words: Words) -> str:
    """What became of whom, with the last words."""
    if isinstance(lost, Refused):
        return f"{words[lost.rank][0]} cannot start: {lost.error.rstrip('.')}"
    if lost.rank is None:
        return f"The processes of the run {lost.what}"
    label, said = words[lost.rank]
    words_said = f"; its last words: {said.rstrip('.')}" if said else ""
    return f"{label} {lost.what}{words_said}"


def supervisor_of(
    run: Run, lock: int, environment: Mapping[str, str], devices: Hold | None = None
) -> Supervisor | None:
    """The supervisor of a run; None where it has one process, or a configuration that its worker will refuse.

    Args:
        run: The run.
        lock: Descriptor of the worker lock.
        environment: Of this process as it was started.
        devices: The devices of this machine that it holds.
    """
    held = devices or Hold()
    try:
        config = run.config()
        spread = bool(config.distributed.other_hosts)
        cards = process_cards(config) if wants_several(config) else []
    except UserError:
        return None
    # What opens the user's keys is for ssh alone.
    bare = {name: value for name, value in environment.items() if name not in AGENT_VARIABLES}
    if spread:
        starts = spread_starts(run, config, cards, bare, environment)
        prepare, away = (lambda: compare_for(run, config)), (lambda stopped: machine_away(config, stopped))
        return Supervisor(run, config, lock, starts, prepare, held, away)
    return Supervisor(run, config, lock, local_starts(run, cards, bare), devices=held) if len(cards) > 1 else None
