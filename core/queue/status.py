"""Process of the queue's runner: its status, start and end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.helper import start_detached
from core.launch.launcher import worker_environment
from core.lock_file import try_lock_file
from core.queue.store import read_queue
from core.runs.record.state import is_same_process, own_identity, send_signal
from core.small_files import read_json
from core.text import one_line

_LIMIT = 1 << 16
_children: list[subprocess.Popen[bytes]] = []
#: Seconds that a runner may take to begin or to end.
PATIENCE = 20.0
#: Seconds that another runner, which came first, may take to write its status.
_SECOND = 3.0


@dataclass(frozen=True, kw_only=True)
class RunnerStatus:
    """Status of the queue's runner, as it last wrote it to ``runner.json``."""

    pid: int
    pid_started: str | None
    doing: str = ""
    """Its present activity, as a sentence."""
    entry: int | None = None
    """The entry of that activity."""
    updated: float = 0.0
    """Unix seconds."""

    def write(self) -> None:
        """Replace the file; skipped if the disk is full, as it is only for people."""
        with contextlib.suppress(OSError):
            write_atomic(_status_path(), json.dumps(dataclasses.asdict(self), indent=1) + "\n", durable=False)


def _status_path() -> Path:
    return paths.queue_dir() / "runner.json"


def log_path() -> Path:
    """Output of the runner."""
    return paths.queue_dir() / "runner.log"


def try_runner_lock() -> int | None:
    """Try to become the runner of this home.

    Returns:
        The descriptor that holds the lock while it is open, or None if there is a runner.

    Raises:
        UserError: If the lock file cannot be made or locked.
    """
    # Without locks, two runners could start an entry twice.
    return try_lock_file(paths.make_private_dir(paths.queue_dir()) / "runner.lock", needs_locks=True)


def release_runner_lock(descriptor: int) -> None:
    """Stop being the runner; from then on there is none, though the process takes a moment to end."""
    _status_path().unlink(missing_ok=True)
    os.close(descriptor)


def read_status() -> RunnerStatus | None:
    """The status of the active runner; None without one."""
    try:
        data: Any = read_json(_status_path(), _LIMIT)
        pid, identity, entry = data["pid"], data["pid_started"], data["entry"]
        doing, updated = one_line(str(data["doing"]), 400), float(data["updated"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if type(pid) is not int or not isinstance(identity, str) or not is_same_process(pid, identity):
        return None
    is_entry = type(entry) is int
    return RunnerStatus(pid=pid, pid_started=identity, doing=doing, entry=entry if is_entry else None, updated=updated)


def own_status(doing: str = "", entry: int | None = None) -> RunnerStatus:
    """The status of this process."""
    pid, identity = own_identity()
    return RunnerStatus(pid=pid, pid_started=identity, doing=doing, entry=entry, updated=time.time())


def runner_command() -> list[str]:
    """The command line of the runner."""
    return [sys.executable, "-m", "core.queue"]


def start_runner(timeout: float = PATIENCE) -> tuple[RunnerStatus, bool]:
    """Start the runner, detached, unless one is active.

    Returns:
        Its status, and True if it was started by this call.

    Raises:
        UserError: If it does not begin.
    """
    if (status := read_status()) is not None:
        return status, False
    paths.make_private_dir(paths.queue_dir())
    try:
        log = os.open(
            log_path(), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, paths.FILE_MODE
        )
        try:
            child = start_detached(runner_command(), log=log, cwd=paths.queue_dir(), environment=worker_environment())
        finally:
            os.close(log)
    except OSError as error:
        raise UserError(
            f"The runner of the queue cannot be started: {error.strerror}.", "Close something, then do it again."
        ) from error
    _children[:] = [*(other for other in _children if other.poll() is None), child]
    ended = time.monotonic()
    deadline = ended + timeout
    while time.monotonic() < deadline:
        if (status := read_status()) is not None:
            return status, status.pid == child.pid
        if child.poll() is not None:
            if child.returncode or not _has_work():
                break
            # Another runner is active, and may be about to write its status.
            deadline = min(deadline, ended + _SECOND)
        else:
            ended = time.monotonic()
        time.sleep(0.02)
    if child.poll() == 0:
        if _has_work():
            raise UserError(
                "A runner that is not seen from here has the queue: it is on another machine with this home, or in a "
                "container.",
                f"Look there; its log is {log_path()}.",
            )
        # It had nothing to do, and has already ended.
        return RunnerStatus(pid=child.pid, pid_started=None, doing="has ended: nothing waits"), True
    raise UserError("The runner of the queue has not begun.", f"Its log is {log_path()}.")


def _has_work() -> bool:
    """True if a runner would go on; it ends at once only if nothing waits or another runner is active."""
    try:
        queue = read_queue()
    except UserError:
        return True
    return queue.active is not None or queue.next_waiting is not None


def stop_runner(timeout: float = PATIENCE) -> bool:
    """End the runner; the active run goes on, and the next runner takes it over.

    Returns:
        False if there was none.

    Raises:
        UserError: If it does not end, or belongs to another user.
    """
    status = read_status()
    if status is None:
        return False
    try:
        if not send_signal(status.pid, status.pid_started, signal.SIGTERM):
            return False
    except PermissionError as error:
        raise UserError(
            f"The runner, process {status.pid}, belongs to another user.", "Stop it as that user."
        ) from error
    deadline = time.monotonic() + timeout
    while is_same_process(status.pid, status.pid_started):
        if time.monotonic() >= deadline:
            raise UserError(f"The runner, process {status.pid}, has not ended in {timeout:g} s.", "Do it again.")
        time.sleep(0.02)
    return True
