"""Jobs: what a process of an export is told on standard input, and how it answers on standard output.

A job is one line of JSON: what is done (``title``), what helps where it fails (``hint``), where it writes (a file as
``target``, or a ``directory``), and what else its process asks for. Answers are lines of JSON, each with one of
``progress`` (activity, amount done, total), ``error`` with ``hint`` (two sentences), and ``done`` (the result); the
last two end it. Whatever else a library prints goes to standard error, which is the log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.atomic import NO_ROOM
from core.directories import disk_error
from core.errors import UserError, is_panic
from core.helper import tie_to_parent
from core.sandbox.limits import confine
from core.text import one_line
from core.worker.process import environment
from core.worker.process.log import log_exception

#: Seconds between two reports of the same activity.
_INTERVAL = 0.2


class Report:
    """Reports of what goes on; may be used from several threads.

    Args:
        descriptor: Where the answers go.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        self._lock = threading.Lock()
        self._activity, self._next = "", 0.0

    def progress(self, activity: str, done: int | None = None, total: int | None = None) -> None:
        """Report an activity, and how much of it is done; a few times a second, and its end."""
        now = time.monotonic()
        if activity != self._activity or now >= self._next or (done is not None and done == total):
            self._activity, self._next = activity, now + _INTERVAL
            self.answer({"progress": [activity, done, total]})

    def answer(self, content: dict[str, Any]) -> None:
        """Write an answer."""
        with self._lock:
            self._file.write(json.dumps(content) + "\n")
            self._file.flush()

    @contextlib.contextmanager
    def growing(self, detail: str, path: Path, total: int) -> Iterator[None]:
        """Inside, report the size of a file that is written.

        Args:
            detail: The activity.
            path: The file.
            total: Its bytes in the end, as far as they are known.
        """
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_INTERVAL):
                with contextlib.suppress(OSError):
                    self.progress(detail, min(path.stat().st_size, total), total)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def run_job(work: Callable[[dict[str, Any], Report], dict[str, Any]]) -> int:
    """Do the job on standard input, in a process of its own.

    Args:
        work: Does it; its result is the last answer.

    Returns:
        The exit code.
    """
    tie_to_parent()
    environment.prepare()
    os.umask(0o077)
    report = Report(os.dup(sys.stdout.fileno()))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    if "memory" in job:
        confine(int(job["memory"]))
    failure = _attempt(work, job, report)
    if failure is None:
        return 0
    report.answer({"error": failure.message, "hint": failure.hint})
    return 1


def _attempt(
    work: Callable[[dict[str, Any], Report], dict[str, Any]], job: dict[str, Any], report: Report
) -> UserError | None:
    """Do a job and answer with its result; the error in words if it fails."""
    try:
        report.answer({"done": work(job, report)})
    except UserError as error:
        return error
    except MemoryError:
        return UserError(f"There is not enough memory to {job['title']}.", "Close other programs.")
    except OSError as error:
        log_exception()
        if error.errno in (*NO_ROOM, errno.EACCES, errno.EROFS):
            return disk_error(Path(job["target"]).parent if "target" in job else Path(job["directory"]), error)
        return _failure(job, error)
    except BaseException as error:  # libraries in Rust panic with an exception of their own
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        log_exception()
        return _failure(job, error)
    return None


def _failure(job: dict[str, Any], error: BaseException) -> UserError:
    first = one_line(str(error).strip().partition("\n")[0], 300).rstrip(".")
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return UserError(f"It is not possible to {job['title']}: {said}.", str(job["hint"]))
