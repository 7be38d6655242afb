"""Supervisor of a run of several processes: ``python -m core.worker RUN`` becomes it before torch is imported.

Its pid is the run's, and it holds the run's lock. It starts the processes of the run, of which rank 0 is an ordinary
worker, and forwards stop signals to it. If a process is lost, it ends all of them and restarts them from the last
checkpoint, up to ``distributed.restarts`` times. Processes that wait for others or are suspended run no signal
handlers, so they are ended by SIGKILL.
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
from core.hardware.obstacle import only_card, process_cards
from core.notify import Notice, notify
from core.runs.control.devices import Hold
from core.runs.record.events import Event, FailedEvent, FinishedEvent, NoticeEvent, StoppedEvent
from core.runs.record.sentences import sender
from core.runs.record.state import EXIT_CODES, Rank, RunState, write_ranks
from core.runs.record.store import Run, append_events, append_while_open, complete_checkpoints, way_on
from core.worker.distributed.rendezvous import Meeting, file_meeting
from core.worker.process.control import STOP_SIGNALS
from core.worker.process.devices import shared_device
from core.worker.process.log import log
from core.worker.process.reports import AwakeClock
from core.worker.supervise.process import RankProcess, Start
from core.worker.supervise.verdict import Ended, Lost, Refused, Sign, Verdict, judge

#: Seconds between two checks without events.
_LOOK_SECONDS = 0.5
#: Maximum seconds counted between two checks: a longer gap was a suspension of this process, which heard nobody.
_MISSED_SECONDS = 2.0
#: Seconds to wait for the end of a lost process, after the processes that noticed have ended.
_SETTLE_SECONDS = 2.0
#: Seconds for the others to end, after rank 0 has recorded the end, and after a loss.
_GRACE_SECONDS, _LOST_SECONDS = 5.0, 1.0

#: Seconds between two records of the processes' signs.
_RECORD_SECONDS = 2.0

#: Label and last words of each process.
Words = dict[int, tuple[str, str]]
#: Commands of all processes, from their options (``--resume``) and a rendezvous file that does not exist yet.
Starts = Callable[[Sequence[str], Path], Sequence[Start]]


@dataclass
class Supervisor:
    """Supervises a run.

    Args:
        run: The run.
        config: Its configuration.
        lock: Descriptor of the worker lock.
        starts: Commands of its processes.
    """

    run: Run
    config: Config
    lock: int
    starts: Starts
    devices: Hold = field(default_factory=Hold)
    """Devices of the run, which its processes hold too."""
    _stops: list[signal.Signals] = field(default_factory=list, init=False)
    _wake: int = field(default=-1, init=False)
    _awake: AwakeClock = field(default_factory=lambda: AwakeClock(_MISSED_SECONDS), init=False)
    """Clock for measuring silence."""
    _recorded: float = field(default=float("-inf"), init=False)
    """Time of the last record."""

    def supervise(self, options: Sequence[str]) -> int | list[str]:
        """Carry the run out.

        Args:
            options: Options of the worker.

        Returns:
            The exit code, or the options of the worker that the run continues as.
        """
        with self._hearing_stops():
            try:
                if self.devices.beside:
                    self._tell(shared_device(self.devices.beside))
                return self._go_through(options)
            except UserError as error:
                return self._fail(error.message, error.hint)

    def _go_through(self, options: Sequence[str]) -> int | list[str]:
        """Start the processes, again after each loss, until the run has ended.

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
                # New processes would only stop at once.
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
            # A process that dies in a driver afterwards changes nothing.
            return Ended(code), words
        if not all(gone):
            # It is stuck in a driver or on a disk; new processes would share its device.
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
        """Exit code of the end recorded by rank 0; None if there is none.

        Args:
            before: State before the start, possibly the end of an earlier one.
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
        """Record the processes' signs (:mod:`core.runs.record.state`) every few seconds; on a full disk they become
        stale."""
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
        """Record warnings of ranks that write no record, until rank 0 has closed it."""
        for notice in [notice for process in processes for notice in process.take_notices()]:
            self._tell(notice, append_while_open)

    def _begin_again(self, sentence: str, number: int) -> list[str]:
        """Record the restart; returns its options."""
        state = RunState.read(self.run.state_path)
        found = complete_checkpoints(self.run)
        where = f"goes on from {found[-1].name}" if found else "begins again"
        of = self.config.distributed.restarts
        message = f"{sentence}. The run {where}, by new processes ({number} of {of} times)."
        self._tell(NoticeEvent(level="warning", code="rank_lost", message=message, hint=""))
        # A pause by the governor has a reason, and ends with the process.
        paused = state is not None and state.state == "paused" and not state.reason
        return [*(["--resume"] if found else []), *(["--paused"] if paused else [])]

    def _fail(self, reason: str, hint: str) -> int:
        """Record that the run has failed, because rank 0 cannot."""
        return self._end("failed", FailedEvent, reason if reason.endswith((".", ")")) else f"{reason}.", hint)

    def _stopped(self) -> int:
        """Record that the run was stopped while it had no processes."""
        step = (RunState.read(self.run.state_path) or RunState(state="starting")).step
        by = sender(self._stops[0].name)
        return self._end("stopped", StoppedEvent, f"stopped {by} after step {step}", way_on(self.run))

    def _end(self, state: Literal["failed", "stopped"], kind: type[FinishedEvent], reason: str, hint: str) -> int:
        """Record the end of the run; returns its exit code."""
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
        """Context that keeps stop signals for rank 0 and ignores SIGHUP."""

        def keep(number: int, _frame: FrameType | None) -> None:
            self._stops.append(signal.Signals(number))

        self._wake, writing = os.pipe()
        for descriptor in (self._wake, writing):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writing)
        before = {number: signal.signal(number, keep) for number in STOP_SIGNALS}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # If it were ignored, the kernel would discard exit codes.
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
    """Stop polling ended processes, whose descriptors stay readable."""
    for process in processes:
        if process.sign().status is not None:
            for descriptor in (process.reading, process.handle):
                with contextlib.suppress(KeyError, OSError):
                    poll.unregister(descriptor)


def _sentence(lost: Lost, words: Words) -> str:
    """Fate of a lost process, with its last words."""
    if lost.rank is None:
        return f"The processes of the run {lost.what}"
    label, said = words[lost.rank]
    words_said = f"; its last words: {said.rstrip('.')}" if said else ""
    return f"{label} {lost.what}{words_said}"


def local_starts(run: Run, cards: Sequence[str | None], environment: Mapping[str, str]) -> Starts:
    """Commands of a run's processes on this machine, which share its cores.

    Args:
        run: The run.
        cards: The card of each process; None for the default one.
        environment: Environment at the start of the supervisor.
    """
    count = len(cards)
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))

    def start(rank: int, options: Sequence[str], meeting: Path) -> Start:
        variables = {**environment, **Meeting(rank, count, rank, file_meeting(meeting)).variables()}
        if (card := cards[rank]) is not None:
            variables |= only_card(card)
        variables.setdefault("OMP_NUM_THREADS", threads)
        path = run.log_path if rank == 0 else run.path / f"worker-rank{rank}.log"
        command = [sys.executable, "-m", "core.worker", str(run.path), *options]
        return Start(rank, command, variables, path, f"Process {rank}")

    return lambda options, meeting: [start(rank, options, meeting) for rank in range(count)]


def supervisor_of(
    run: Run, lock: int, environment: Mapping[str, str], devices: Hold | None = None
) -> Supervisor | None:
    """Supervisor of a run; None for a run of one process, or a configuration that its worker will refuse.

    Args:
        run: The run.
        lock: Descriptor of the worker lock.
        environment: Environment at the start of this process.
        devices: Devices held by this process.
    """
    try:
        config = run.config()
        cards = process_cards(config) if wants_several(config) else []
    except UserError:
        return None
    if len(cards) < 2 or config.distributed.other_hosts:
        return None
    return Supervisor(run, config, lock, local_starts(run, cards, environment), devices or Hold())
