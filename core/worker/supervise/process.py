"""One process of a run, as its supervisor sees it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.paths import FILE_MODE
from core.runs.lock import LOCK_VARIABLE
from core.text import one_line
from core.worker.process.reports import REPORTS, SUPERVISOR
from core.worker.supervise.verdict import Sign

#: The longest line of a report, and how much of a log is read for its last lines.
_LINE_LIMIT, _TAIL_BYTES = 1 << 16, 16 << 10


@dataclass(frozen=True)
class Start:
    """How a process is started.

    Args:
        rank: Its number.
        command: The command line.
        environment: Its variables.
        log: Where its output goes.
        label: What it is called in sentences: ``process 1 on tower``.
    """

    rank: int
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    label: str


@dataclass
class RankProcess:
    """A process that was started, in a session of its own; the kernel ends it when its supervisor is gone.

    Args:
        start: How.
        lock: Descriptor of the worker lock, which it holds too: the run is taken until all its processes are gone.
        devices: Descriptors of the locks of its devices, which are taken as long.

    Raises:
        OSError: If it cannot be started.
    """

    start: Start
    lock: int
    devices: Sequence[int] = ()
    reading: int = field(init=False)
    """The pipe with its reports."""
    notices: list[Any] = field(init=False, default_factory=list)
    """Warnings that it has reported: level, code, message and hint of each."""
    _signs: dict[str, Any] = field(init=False, default_factory=dict)
    _rest: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            log = os.open(self.start.log, flags, FILE_MODE)
            # What stands there already are the words of others.
            self._log_began = os.fstat(log).st_size
            try:
                self._child = subprocess.Popen(
                    list(self.start.command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={
                        **self.start.environment,
                        REPORTS: str(writing),
                        SUPERVISOR: str(os.getpid()),
                        LOCK_VARIABLE: str(self.lock),
                    },
                    start_new_session=True,
                    pass_fds=(writing, self.lock, *self.devices),
                )
            finally:
                os.close(log)
        except OSError:
            os.close(self.reading)
            raise
        finally:
            os.close(writing)
        self.handle = os.pidfd_open(self._child.pid)
        """Becomes readable when it ends."""
        self._heard = time.monotonic()
        self.has_begun = False
        """Whether it has given a sign of life, and so hears signals."""

    @property
    def rank(self) -> int:
        """Its number."""
        return self.start.rank

    def listen(self) -> None:
        """Read what it has reported."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reading, _LINE_LIMIT):
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            self._heard, self.has_begun = time.monotonic(), True
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict):
                    self.notices += [said.pop("notice")] if "notice" in said else []
                    self._signs.update(said)

    def sign(self) -> Sign:
        """What is known of it now."""
        # The status first: what a process has said before it ended is then there to be read.
        status = self._child.poll()
        self.listen()
        following = self._signs.get("following")
        return Sign(
            rank=self.rank,
            status=status,
            silent=time.monotonic() - self._heard,
            has_begun=self.has_begun,
            is_waiting=bool(self._signs.get("waiting")),
            error=one_line(str(self._signs.get("error", ""))),
            hint=one_line(str(self._signs.get("hint", ""))),
            following=None if following is None else tuple(map(str, following)),
            host=one_line(str(self._signs.get("host", "")), 200),
            pid=pid if isinstance(pid := self._signs.get("pid"), int) else None,
            device=one_line(str(self._signs.get("device", "")), 200),
        )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)

    def end(self, seconds: float) -> bool:
        """Wait until it has ended, for so long, then end it and what it has started by SIGKILL; whether it is gone.

        Args:
            seconds: To wait before, and at most as long again for the kernel to end it.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        try:
            self._child.wait(max(seconds, 10.0))
        except subprocess.TimeoutExpired:
            return False
        self.listen()
        return True

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.reading)
        os.close(self.handle)

    def last_words(self) -> str:
        """What it said last: the reason of its end, else the last line of its log."""
        if said := str(self._signs.get("error", "")):
            return one_line(said)
        try:
            with self.start.log.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, self._log_began))
                lines = file.read(_TAIL_BYTES).decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        # What the launcher and the supervisor write is none of its words.
        kept = [one_line(line, 300) for line in lines if line.strip() and not line.startswith("== ")]
        return kept[-1] if kept else ""
