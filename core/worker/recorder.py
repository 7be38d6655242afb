"""What the worker tells the world: events, state and heartbeat, hardware samples."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

from core.hardware.sampler import Sampler
from core.paths import FILE_MODE
from core.runs.events import Event, HardwareEvent, MemoryEvent, NoticeEvent, PhaseEvent, encode_event
from core.runs.process import hostname, own_identity
from core.runs.state import END_STATES, RunState
from core.runs.store import Run

#: Seconds between heartbeats (the contract allows five) and between hardware samples.
HEARTBEAT_SECONDS = 2.0


class Recorder:
    """Writes ``events.jsonl`` and ``state.json`` of one run; may be used from any thread.

    A full disk or another failure to write never ends training: it is printed to the log, once, and writing is tried
    again with the next event. The heartbeat has a thread of its own, so that a step that hangs is told from a process
    that is gone.

    Args:
        run: The run directory.
        resume: Whether ``events.jsonl`` is continued.
    """

    def __init__(self, run: Run, *, resume: bool = False) -> None:
        self.run = run
        pid, identity = own_identity()
        self._state = RunState(
            state="starting", pid=pid, pid_started=identity, host=hostname(), socket=str(run.socket_path)
        )
        if resume and (before := RunState.read(run.state_path)) is not None:
            self._state = dataclasses.replace(self._state, step=before.step, total_steps=before.total_steps)
        self._lock = threading.RLock()
        self._failing = False
        self._closed = threading.Event()
        self._file = os.open(run.events_path, os.O_RDWR | os.O_APPEND | os.O_CREAT, FILE_MODE)
        self._mend_last_line()
        self._sampler = Sampler(HEARTBEAT_SECONDS)
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.update()
        self._heart.start()

    @property
    def state(self) -> RunState:
        """The state as last written."""
        return self._state

    def event(self, event: Event) -> None:
        """Append one event."""
        data = encode_event(event).encode("utf-8", errors="replace")
        with self._lock:
            try:
                written = os.write(self._file, data)
                if written < len(data):
                    # The disk filled up within the line; the next event must not be glued to its half.
                    raise OSError("only a part of the event could be written")
                self._failing = False
            except OSError as error:
                self._complain("events.jsonl", error)

    def phase(self, name: str, detail: str = "", done: int | None = None, total: int | None = None) -> None:
        """Say which phase it is, or how far."""
        self.event(PhaseEvent(name=name, detail=detail, done=done, total=total))

    def notice(self, level: str, code: str, message: str, hint: str = "") -> None:
        """Tell the user something, in the run's record and in the log."""
        self.event(NoticeEvent(level=level, code=code, message=message, hint=hint))
        print(f"{level}: {message} {hint}".rstrip(), file=sys.stderr, flush=True)

    def memory(self, device: str, **values: Any) -> None:
        """Record the device's memory, and the peak of this process's resident memory."""
        if device != "cpu":
            self.event(MemoryEvent(device=device, **values))
            values = {}
        self.event(MemoryEvent(device="cpu", **{**values, "peak_bytes": peak_rss_bytes()}))

    def update(self, **changes: Any) -> None:
        """Change fields of the state and write it, heartbeat included."""
        with self._lock:
            self._state = dataclasses.replace(self._state, **changes, updated=time.time())
            try:
                self._state.write(self.run.state_path)
            except OSError as error:
                self._complain("state.json", error)

    def close(self, state: str, reason: str, final: Event) -> None:
        """Write the last event and the end state; nothing is written afterwards."""
        if state not in END_STATES:
            raise ValueError(f"{state} is not an end state")
        self._closed.set()
        self._heart.join(timeout=2 * HEARTBEAT_SECONDS)
        self._sampler.close()
        self.event(final)
        with self._lock:
            try:
                os.fsync(self._file)
            except OSError as error:
                self._complain("events.jsonl", error)
            self.update(state=state, reason=reason, socket=None)
            os.close(self._file)

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            self.update()
            devices = self._sampler.latest()
            if devices:
                self.event(
                    HardwareEvent(devices=[device.to_dict() for device in devices], energy_wh=self._sampler.energy_wh)
                )

    def _mend_last_line(self) -> None:
        """A line that a killed worker left unfinished gets its newline, so that readers count it as one bad line."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def _complain(self, name: str, error: OSError) -> None:
        if not self._failing:
            print(f"error: {name} cannot be written: {error}", file=sys.stderr, flush=True)
        self._failing = True
        if name == "events.jsonl":
            try:
                self._mend_last_line()
            except OSError as again:
                print(f"error: {name}: {again}", file=sys.stderr, flush=True)


def peak_rss_bytes() -> int:
    """The highest resident memory of this process so far, in bytes (``VmHWM``)."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError as error:
        print(f"error: /proc/self/status: {error}", file=sys.stderr)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
