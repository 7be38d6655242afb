"""The supervisor of a run of several processes: ``python -m core.worker RUN`` becomes it before torch is imported.

Its pid is the run's, and it holds the run's lock. It starts the processes of the run, the first of which is a worker as
in any run, and passes stop signals on to it. When a process is lost, it ends all and starts them again from the last
checkpoint, ``distributed.restarts`` times at most. A process that waits for others runs no signal handler, and a
suspended one none at all: they are ended by SIGKILL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from core.config.derived import wants_several
from core.config.schema import Config
from core.errors import UserError
from core.hardware.obstacle import process_cards
from core.hardware.visible import VISIBLE
from core.notify import Notice, notify
from core.runs.control.devices import Hold
from core.runs.record.events import Event, FailedEvent, FinishedEvent, NoticeEvent, StoppedEvent
from core.runs.record.files import append_events, append_while_open
from core.runs.record.sentences import sender
from core.runs.record.state import EXIT_CODES, Rank, RunState, write_ranks
from core.runs.record.store import Run, complete_checkpoints, way_on
from core.worker.distributed.rendezvous import Meeting, file_meeting
from core.worker.process.control import STOP_SIGNALS
from core.worker.process.devices import shared_device
from core.worker.process.log import log
from core.worker.process.pulse import AwakeClock
from core.worker.supervise.process import RankProcess, Start
from core.worker.supervise.verdict import Ended, Lost, Refused, Sign, Verdict, judge

#: Seconds between two looks when nothing happens.
_LOOK_SECONDS = 0.5
#: Most seconds that count between two looks: in more, this process was suspended and could hear nobody.
_MISSED_SECONDS = 2.0
#: Seconds until the end of a lost process is known, after the end of the processes that noticed.
_SETTLE_SECONDS = 2.0
#: Seconds that the others may take to end, after the first one has recorded the end and after a loss.
_GRACE_SECONDS, _LOST_SECONDS = 5.0, 1.0

#: Seconds between two records of the signs of life.
_RECORD_SECONDS = 2.0

#: Label of each process, and its last words.
Words = dict[int, tuple[str, str]]
#: Starts of all processes, from their options (``--resume``) and a file to meet over that does not exist yet.
Starts = Callable[[Sequence[str], Path], Sequence[Start]]


@dataclass
class Supervisor:
    """Supervises a run.

    Args:
        run: The run.
        config: Its configuration.
        lock: Descriptor of the worker lock.
        starts: Starts of its processes.
    """

    run: Run
    config: Config
    lock: int
    starts: Starts
    devices: Hold = field(default_factory=Hold)
    """The devices of the run, which its processes hold too."""
    _stops: list[signal.Signals] = field(default_factory=list, init=False)
    _wake: int = field(default=-1, init=False)
    _awake: AwakeClock = field(default_factory=lambda: AwakeClock(_MISSED_SECONDS), init=False)
    """The clock for silence."""
    _recorded: float = field(default=float("-inf"), init=False)
    """Time of the last record of the signs of life."""

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
                return self._go_through(options)
            except UserError as error:
                return self._fail(error.message, error.hint)

    def _go_through(self, options: Sequence[str]) -> int | list[str]:
        """Start the processes, again where one was lost, until the run has ended.

        Raises:
            UserError: If they cannot be started.
        """
        restarts = 0
        while not self._stops:
            verdict, words = self._attempt(restarts, options)
            if isinstance(verdict, Ended):
                return verdict.code if verdict.following is None else list(verdict.following)
            if isinstance(verdict, Refused):
                return self._fail(verdict.error, verdict.hint)
            sentence = _sentence(verdict, words)
            if self._stops:
                # New processes would have nothing to do but to stop.
                self._tell(NoticeEvent(level="warning", code="rank_lost", message=f"{sentence}.", hint=""))
                break
            if restarts >= self.config.distributed.restarts:
                again = "" if not restarts else f", after {restarts} new starts" if restarts > 1 else ", again"
                return self._fail(f"{sentence}{again}", way_on(self.run))
            restarts += 1
            options = self._begin_again(sentence, restarts)
        return self._stopped()

    def _attempt(self, number: int, options: Sequence[str]) -> tuple[Verdict, Words]:
        """Start all processes and wait for a verdict; returns it with their labels and last words."""
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
            # The fate of a process after that, in a driver that it left, changes nothing.
            return Ended(code), words
        if not all(gone):
            # It waits for a driver or a disk; another set of processes would share its device with it.
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
        sent = 0
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
            self._record(signs)
            if lost_since is None and any(sign.has_lost for sign in signs):
                lost_since = self._awake.seconds
            settled = lost_since is not None and self._awake.seconds - lost_since >= _SETTLE_SECONDS
            if (verdict := judge(signs, self.config.distributed.timeout, settled=settled)) is not None:
                return verdict
            _forget_ended(poll, processes)

    def _record(self, signs: Sequence[Sign]) -> None:
        """Record the signs of life (:mod:`core.runs.record.state`) every few seconds; a full disk makes them stale."""
        if time.monotonic() - self._recorded < _RECORD_SECONDS:
            return
        self._recorded, now = time.monotonic(), time.time()
        ranks = [
            Rank(
                rank=sign.rank,
                host=sign.host,
                pid=sign.pid,
                device=sign.device,
                heard=now - sign.silent,
                is_waiting=sign.is_waiting,
            )
            for sign in signs
        ]
        with contextlib.suppress(OSError):
            write_ranks(self.run.path, ranks)

    def _pass_on(self, processes: Sequence[RankProcess]) -> None:
        """Record the warnings of processes that write no record, until the first one has closed it."""
        for notice in [notice for process in processes for notice in process.take_notices()]:
            self._tell(notice, append_while_open)

    def _begin_again(self, sentence: str, number: int) -> list[str]:
        """Record that all starts again; returns the options for that."""
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


def _sentence(lost: Lost, words: Words) -> str:
    """The fate of a lost process, with its last words."""
    if lost.rank is None:
        return f"The processes of the run {lost.what}"
    label, said = words[lost.rank]
    words_said = f"; its last words: {said.rstrip('.')}" if said else ""
    return f"{label} {lost.what}{words_said}"


def local_starts(run: Run, cards: Sequence[str | None], environment: Mapping[str, str]) -> Starts:
    """Starts of the processes of a run on this machine, which share its cores.

    Args:
        run: The run.
        cards: The card of each process; None for the default one.
        environment: Of the supervisor as it was started.
    """
    count = len(cards)
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))

    def start(rank: int, options: Sequence[str], meeting: Path) -> Start:
        variables = {**environment, **Meeting(rank, count, rank, file_meeting(meeting)).variables()}
        if (card := cards[rank]) is not None:
            variables[VISIBLE] = card
        variables.setdefault("OMP_NUM_THREADS", threads)
        path = run.log_path if rank == 0 else run.path / f"worker-rank{rank}.log"
        command = [sys.executable, "-m", "core.worker", str(run.path), *options]
        return Start(rank, command, variables, path, f"Process {rank}")

    return lambda options, meeting: [start(rank, options, meeting) for rank in range(count)]


def supervisor_of(
    run: Run, lock: int, environment: Mapping[str, str], devices: Hold | None = None
) -> Supervisor | None:
    """The supervisor of a run; None for a run of one process, or a configuration that its worker will refuse.

    Args:
        run: The run.
        lock: Descriptor of the worker lock.
        environment: Of this process as it was started.
        devices: The devices of the run that this process holds.
    """
    try:
        config = run.config()
        cards = process_cards(config) if wants_several(config) else []
    except UserError:
        return None
    if len(cards) < 2 or config.distributed.other_hosts:
        return None
    return Supervisor(run, config, lock, local_starts(run, cards, environment), devices or Hold())
