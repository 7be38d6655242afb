"""Recorder of a run: events, state and heartbeat, hardware samples."""

from __future__ import annotations

import dataclasses
import os
import queue
import resource
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from core.atomic import fsync_dir
from core.beneath import open_beneath
from core.hardware.sampler import Sampler
from core.hardware.snapshot import Device
from core.redact import redact
from core.runs.record.chain import CHAIN_NAME, Chain
from core.runs.record.events import (
    Event,
    FinishedEvent,
    MemoryEvent,
    NoticeEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
    encode_event,
)
from core.runs.record.state import (
    END_STATES,
    RunState,
    StepProgress,
    hostname,
    own_counter,
    own_identity,
    start_identity,
)
from core.runs.record.store import EVENTS_NAME, Run, closing_record
from core.worker.process.hardware_log import HardwareLog
from core.worker.process.log import log
from core.worker.process.step_watchdog import StepWatchdog, stage_of

#: Seconds between heartbeats (the contract allows five) and between hardware samples.
HEARTBEAT_SECONDS = 2.0
#: Seconds between two checks of the progress of a step or an evaluation, which is written if it changed.
PROGRESS_SECONDS = 1.0
#: Seconds between two progress reports of a phase.
REPORT_SECONDS = 0.5


@dataclasses.dataclass(eq=False)
class Recorder:
    """Writes ``events.jsonl`` and ``state.json`` of one run; usable from any thread.

    A full disk or another write error never ends training: it is logged once, and writing is retried with the next
    event. The heartbeat has its own thread, so a hanging step differs from a dead process.

    Args:
        run: The run directory.
        resume: Continue ``events.jsonl``.
        vanished: Called when the run directory is gone, so that nobody will see the record.
        pending: Returns the requests waiting for the training thread; written to the state until the run stops.
        changes: Gets an item whenever they change, so that they are written at once.
        parked: Reason why the run has given its device back, whose meters are not recorded then. Empty while it has the
            device.
        heard: Receives each event, in the thread that reports it.
        owner: Pid of the supervisor that starts and ends this process; None if this process owns the run.
        keeps: Write files. False in ranks after the first, which run the same recipe with their own log.
        pass_on: Receives the warnings of such a process: ``pass_on(level, code, message, hint)``.
    """

    run: Run
    _: dataclasses.KW_ONLY
    resume: bool = False
    vanished: Callable[[], None] = lambda: None
    pending: Callable[[], tuple[str, ...]] = tuple
    changes: queue.SimpleQueue[None] = dataclasses.field(default_factory=queue.SimpleQueue)
    parked: str = ""
    heard: Callable[[Event], None] = lambda _: None
    owner: int | None = None
    keeps: bool = True
    pass_on: Callable[[str, str, str, str], None] = lambda *_: None

    def __post_init__(self) -> None:
        run, parked, owner = self.run, self.parked, self.owner
        self._chain = Chain(run.path, run.events_path)
        self._progress: StepProgress | None = None
        self._directory = os.stat(run.path)
        self.rested: Callable[[], float] = float
        """Seconds that the training thread has rested so far; rests do not make a step slow."""
        self._watchdog = StepWatchdog(lambda: time.monotonic() - self.rested())
        pid, identity = own_identity() if owner is None else (owner, start_identity(owner))
        counter, kills = own_counter()
        self.state = RunState(
            state="paused" if parked else "starting",
            parked=parked,
            pid=pid,
            pid_started=identity,
            host=hostname(),
            socket=None if parked else str(run.socket_path),
            memory_events=counter,
            memory_kills=kills,
        )
        """The state as last written."""
        if self.resume and (before := RunState.read(run.state_path)) is not None:
            self.state = dataclasses.replace(self.state, step=before.step, total_steps=before.total_steps)
        self._lock = threading.RLock()
        self._failing: set[str] = set()
        self._peaks: dict[str, int] = {}
        self._step_began: float | None = None
        self._torn = False
        self._closed = threading.Event()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        self._file = (
            open_beneath(run.path, EVENTS_NAME, flags) if self.keeps else os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        )
        self._mend_last_line()
        self.sampler = Sampler(HEARTBEAT_SECONDS)
        """Meters of the run's own device."""
        # While a run is parked, the meters show other users of its device.
        self._hardware = None if parked or not self.keeps else HardwareLog(self.sampler, self.event, self.notice)
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.update()
        self._heart.start()

    @property
    def device(self) -> Device | None:
        """Last snapshot of the run's own device; None before the first reading."""
        devices = self.sampler.latest()
        return devices[0] if devices else None

    @property
    def device_peak(self) -> int:
        """Recorded peak of the run's device memory, in bytes."""
        return next((peak for device, peak in self._peaks.items() if device != "cpu"), self._peaks.get("cpu", 0))

    def event(self, event: Event) -> None:
        """Append an event, with secrets in its texts replaced."""
        if isinstance(event, StepEvent):
            self._watchdog.done(event.seconds)
        if isinstance(event, MemoryEvent):
            known = (self._peaks.get(event.device), event.rehearsed_bytes, event.peak_bytes)
            self._peaks[event.device] = max(bytes_ or 0 for bytes_ in known)
        event = _redacted(event)
        with self._lock:
            # Several threads report; times in the file must not decrease.
            data = encode_event(dataclasses.replace(event, t=time.time())).encode("utf-8", errors="replace")
            if self._torn:
                # The disk filled up in the middle of an earlier line; do not append to its half.
                data = b"\n" + data
            try:
                written = os.write(self._file, data)
                if written < len(data):
                    self._torn = True
                    raise OSError("only a part of the event could be written")
                self._torn = False
                self._failing.discard("events.jsonl")
            except OSError as error:
                self._warn_once("events.jsonl", error)
        self.heard(event)

    def seal(self, kind: str, body: dict[str, Any]) -> None:
        """Add a link to the run's hash chain, over the events so far (:mod:`core.runs.record.chain`).

        Args:
            kind: Kind of link.
            body: Body as JSON.
        """
        if not self.keeps:
            return
        with self._lock:
            try:
                self._chain.append(kind, body)
                self._failing.discard(CHAIN_NAME)
            except OSError as error:
                self._warn_once(CHAIN_NAME, error)

    def phase(self, name: str, detail: str = "", done: int | None = None, total: int | None = None) -> None:
        """Report the current phase or its progress."""
        self.event(PhaseEvent(name=name, detail=detail, done=done, total=total))

    def reporter(
        self, name: str, check: Callable[[], None] = lambda: None
    ) -> Callable[[str, int | None, int | None], None]:
        """A function that reports the progress of a phase, at most twice a second. It calls ``check`` each time, which
        may raise to stop."""
        last = 0.0

        def report(detail: str, done: int | None, total: int | None) -> None:
            nonlocal last
            check()
            now = time.monotonic()
            if now - last >= REPORT_SECONDS or (done is not None and done == total):
                last = now
                self.phase(name, detail, done, total)

        return report

    def progress(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report the progress of a step or an evaluation. Cheap: another thread writes it to the state, at most once a
        second.

        Args:
            what: ``micro_batches``, ``evaluation``, ``answers``, ``probe``, ``samples`` or ``checkpoint``.
            done: Number done.
            total: Total number; 0 if not counted.
        """
        self._progress = StepProgress(what, done, total)

    def end_progress(self) -> None:
        """End the progress reported by :meth:`progress`."""
        self._progress = None

    def notice(self, level: str, code: str, message: str, hint: str = "") -> None:
        """Report to the user, in the run's record and in the log."""
        self.event(NoticeEvent(level=level, code=code, message=message, hint=hint))
        if level != "info":
            self.pass_on(level, code, message, hint)
        log(f"{level}: {message} {hint}".rstrip())

    def warn(self, code: str, message: str, hint: str) -> None:
        """Warn of a problem that does not end the run."""
        self.notice("warning", code, message, hint)

    def memory(self, device: str, **values: Any) -> None:
        """Record the device's memory, and the peak resident memory of this process."""
        if device != "cpu":
            self.event(MemoryEvent(device=device, **values))
            values = {}
        self.event(MemoryEvent(device="cpu", **{"peak_bytes": peak_rss_bytes(), **values}))

    def update(self, **changes: Any) -> None:
        """Change fields of the state and write it, including the heartbeat."""
        if "reason" in changes:
            changes["reason"] = redact(changes["reason"])
        with self._lock:
            now, beat, began = time.time(), time.monotonic(), self._step_began
            # Relative to now, so that it is right for readers even if the clock was changed.
            started = now - (beat - began) if began is not None else None
            self.state = dataclasses.replace(
                self.state,
                **changes,
                updated=now,
                beat=beat,
                step_started=started,
                pending=self._pending(changes.get("state", self.state.state)),
                progress=self._progress,
            )
            if not self.keeps:
                return
            try:
                self.state.write(self.run.state_path)
                self._failing.discard("state.json")
            except OSError as error:
                self._warn_once("state.json", error)
                if self._has_vanished():
                    self.vanished()

    def _pending(self, state: str) -> tuple[str, ...]:
        return () if state == "stopping" or state in END_STATES else self.pending()

    def begin_step(self) -> None:
        """Note the start of an optimizer step, for the next heartbeat."""
        self.end_progress()
        with self._lock:
            self._step_began = time.monotonic()
        self._watchdog.begin()

    def end_step(self, step: int) -> None:
        """Note the end of an optimizer step."""
        self._watchdog.end()
        self.end_progress()
        with self._lock:
            self._step_began = None
            self.update(step=step)

    def close(self, state: str, reason: str, final: FinishedEvent) -> None:
        """Write the last event and the final state; nothing is written afterwards."""
        if state not in END_STATES:
            raise ValueError(f"{state} is not an end state")
        self._end_threads()
        # Other processes of the run may report something at this moment.
        with closing_record(self._file) if self.keeps else nullcontext():
            self.event(final)
            self.seal("end", {"state": state, "step": final.step})
            self._settle(state=state, reason=reason, refused=final.refused or "", parked="")
        os.close(self._file)

    def hand_over(self, **changes: Any) -> None:
        """Leave the record to the program that this process continues as.

        Args:
            **changes: Fields of the state.
        """
        self._end_threads()
        if cause := changes.get("parked"):
            self.seal("parked", {"cause": cause})
        self._settle(**changes)
        os.close(self._file)

    def _end_threads(self) -> None:
        self._closed.set()
        self.changes.put(None)
        self.end_progress()
        self._heart.join(timeout=2 * HEARTBEAT_SECONDS)
        if self._hardware is not None:
            self._hardware.close()
        self.sampler.close()

    def _settle(self, **changes: Any) -> None:
        with self._lock:
            self.sync()
            self._step_began = None
            self.update(socket=None, **changes)

    def sync(self) -> None:
        """Flush the events so far to disk."""
        if not self.keeps:
            return
        try:
            os.fsync(self._file)
            fsync_dir(self.run.path)
        except OSError as error:
            self._warn_once("events.jsonl", error)

    def _beat(self) -> None:
        due = time.monotonic() + HEARTBEAT_SECONDS
        while self._wait_for_change(due - time.monotonic()):
            if time.monotonic() < due:
                self._tell_change()
                continue
            due = time.monotonic() + HEARTBEAT_SECONDS
            self.update()
            if self._has_vanished():
                # A recreated directory accepts the state, but nobody looks for it there.
                self.vanished()
            if (slow := self._watchdog.look()) is not None:
                self._tell_slow(*slow)
            if self._hardware is not None:
                self._hardware.tick()

    def _wait_for_change(self, seconds: float) -> bool:
        """Wait for a change of pending requests, at most for ``seconds``; returns True while the run continues."""
        with suppress(queue.Empty):
            self.changes.get(timeout=max(min(seconds, PROGRESS_SECONDS), 0.0))
            while True:  # one update for all changes so far
                self.changes.get_nowait()
        return not self._closed.is_set()

    def _tell_change(self) -> None:
        """Write the state if pending requests or progress changed."""
        state = self.state
        if self._pending(state.state) != state.pending or self._progress != state.progress:
            self.update()

    def _tell_slow(self, seconds: float, median: float) -> None:
        stage = stage_of(threading.main_thread())
        where = f" It is at {stage}." if stage else ""
        self.notice(
            "warning",
            "slow_step",
            f"Step {self.state.step + 1} takes long: {seconds:.0f} s so far, where the median is {median:.2g} s."
            f"{where}",
            "Look at the meters: another program may hold the device, or memory may be swapped out. "
            f"'localtune-tui stop --force {self.run.id}' ends a step that hangs.",
        )

    def _has_vanished(self) -> bool:
        """True if the run directory was removed or replaced."""
        try:
            return not os.path.samestat(os.stat(self.run.path), self._directory)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # the file system may answer again later

    def _mend_last_line(self) -> None:
        """Terminate a line that a killed worker left unfinished, so that readers count it as one bad line."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def _warn_once(self, name: str, error: OSError) -> None:
        if name not in self._failing:
            log(f"error: {name} cannot be written: {error}")
        self._failing.add(name)


def _redacted(event: Event) -> Event:
    """The event without secrets; text generated by a model stays as it is."""
    if isinstance(event, SampleEvent):
        return event
    texts: dict[str, Any] = {
        field.name: redact(value)
        for field in dataclasses.fields(event)
        if isinstance(value := getattr(event, field.name), str)
    }
    return dataclasses.replace(event, **texts) if texts else event


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far, in bytes (``VmHWM``)."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError as error:
        log(f"error: /proc/self/status: {error}")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
