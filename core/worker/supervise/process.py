"""Process of a run, as seen by its supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.beneath import open_beneath
from core.runs.record.events import NoticeEvent
from core.runs.record.store import LOCK_VARIABLE
from core.small_files import open_regular
from core.text import one_line
from core.worker.process.reports import REPORTS, SUPERVISOR, Unchanged
from core.worker.supervise.verdict import Sign

#: Maximum length of a report, and number of log bytes read for last words.
_LINE_LIMIT, _TAIL_BYTES = 1 << 16, 16 << 10
#: Number of fields of a warning (level, code, message, hint), and its valid levels.
_NOTICE_PARTS, _LEVELS = 4, ("warning", "error")


@dataclass(frozen=True)
class Start:
    """Command line and environment of a process of a run.

    Args:
        rank: Its rank.
        command: The command line.
        environment: Its environment.
        log: File for its output.
        label: Its name in messages: ``Process 1``.
    """

    rank: int
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    label: str


@dataclass
class RankProcess:
    """A process in its own session, which the kernel kills when its supervisor is gone.

    Args:
        start: Its command line and environment.
        lock: Descriptor of the worker lock, inherited so that the run is locked until all its processes are gone.
        devices: Descriptors of its device locks, inherited for the same reason.
        clock: Clock for measuring its silence, in seconds.

    Raises:
        OSError: If it cannot be started.
    """

    start: Start
    lock: int
    devices: Sequence[int] = ()
    clock: Callable[[], float] = time.monotonic
    reading: int = field(init=False)
    """The pipe with its reports."""
    _notices: list[NoticeEvent] = field(init=False, default_factory=list)
    _signs: dict[str, Any] = field(init=False, default_factory=dict)
    _rest: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        path = self.start.log
        ours = {REPORTS: str(writing), SUPERVISOR: str(os.getpid()), LOCK_VARIABLE: str(self.lock)}
        try:
            log = open_beneath(path.parent, path.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            # Earlier lines belong to other processes.
            self._log_began = os.fstat(log).st_size
            try:
                self._child = subprocess.Popen(
                    list(self.start.command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**self.start.environment, **ours},
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
        """Pidfd; becomes readable when the process ends."""
        self._heard = self.clock()
        self._wait, self._pulse = Unchanged(self.clock), Unchanged(self.clock)
        self.has_begun = False
        """True after its first heartbeat, when it handles signals."""

    @property
    def rank(self) -> int:
        """Its rank."""
        return self.start.rank

    def listen(self) -> None:
        """Read its reports."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reading, _LINE_LIMIT):
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            self._heard, self.has_begun = self.clock(), True
            with contextlib.suppress(ValueError, RecursionError):
                said = json.loads(line)
                if isinstance(said, dict):
                    self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        """Keep the fields of a report."""
        notice = said.pop("notice", None)
        if isinstance(notice, list) and len(notice) == _NOTICE_PARTS and notice[0] in _LEVELS:
            level, code, message, hint = (one_line(str(part)) for part in notice)
            message = f"{self.start.label}: {message}"
            self._notices.append(NoticeEvent(level=level, code=code, message=message, hint=hint))
        self._signs.update(said)
        if "waiting" in said:
            self._wait.note(said.get("wait") or None)
            self._pulse.note(said.get("pulse"))

    def take_notices(self) -> list[NoticeEvent]:
        """Warnings reported since the last call; ranks after the first write no record."""
        taken, self._notices = self._notices, []
        return taken

    def sign(self) -> Sign:
        """Current life signs."""
        # Status first: the last reports of an ended process are readable then.
        status = self._status()
        self.listen()
        following = self._signs.get("following")
        return Sign(
            rank=self.rank,
            status=status,
            silent=self.clock() - self._heard,
            has_begun=self.has_begun,
            is_waiting=bool(self._signs.get("waiting")),
            waits=self._wait.seconds,
            still=self._pulse.seconds,
            at=one_line(str(self._signs.get("at", "")), 200),
            error=one_line(str(self._signs.get("error", ""))),
            hint=one_line(str(self._signs.get("hint", ""))),
            following=None if following is None else tuple(map(str, following)),
            host=one_line(str(self._signs.get("host", "")), 200),
            pid=pid if isinstance(pid := self._signs.get("pid"), int) else None,
            device=one_line(str(self._signs.get("device", "")), 200),
        )

    def _status(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it lives.

        The process is not reaped, so that its pid stays reserved until :meth:`end`.
        """
        if self._child.returncode is not None:
            return self._child.returncode
        found = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def end(self, seconds: float) -> bool:
        """Kill it and its children by SIGKILL, after a grace period; returns True if it is gone.

        Args:
            seconds: Grace period; then at least 10 s for the kernel to end it.
        """
        ended = select.poll()
        ended.register(self.handle, select.POLLIN)
        ended.poll(1000 * seconds)
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
        """Reported reason of its end, else the last line of its log."""
        if said := str(self._signs.get("error", "")):
            return one_line(said)
        try:
            with open_regular(self.start.log) as file:
                file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, self._log_began))
                lines = (file.read(_TAIL_BYTES) or b"").decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        # Lines of the launcher and the supervisor do not count.
        kept = [one_line(line, 300) for line in lines if line.strip() and not line.startswith("== ")]
        return kept[-1] if kept else ""
