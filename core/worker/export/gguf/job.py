"""Jobs: what a process of an export is told on standard input, and how it answers on standard output.

A job is one line of JSON. Answers are lines of JSON, each with one of ``progress`` (activity, amount done, total),
``error`` with ``hint`` (two sentences), and ``done`` (the result); the last two end it. Whatever else a library prints
goes to standard error, which is the log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from core.directories import disk_error
from core.errors import UserError, is_panic
from core.helper import private_output, tie_to_parent
from core.sandbox.limits import confine
from core.text import one_line
from core.worker.process import environment

#: Seconds between two reports of a file's size.
_INTERVAL = 0.25


class Report:
    """Reports of what goes on; may be used from several threads.

    Args:
        stream: Where the answers go, see :func:`core.helper.private_output`.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def progress(self, detail: str, done: int | None = None, total: int | None = None) -> None:
        """Report an activity, and how much of it is done."""
        self.answer({"progress": [detail, done, total]})

    def answer(self, content: dict[str, Any]) -> None:
        """Write an answer."""
        with self._lock:
            self._stream.write(json.dumps(content).encode("ascii") + b"\n")
            self._stream.flush()

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
    report = Report(private_output())
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
        traceback.print_exc()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return disk_error(Path(job["target"]).parent, error)
        return _failure(job, error)
    except BaseException as error:  # libraries in Rust panic with an exception of their own
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        traceback.print_exc()
        return _failure(job, error)
    return None


def _failure(job: dict[str, Any], error: BaseException) -> UserError:
    said = one_line(str(error), 300).rstrip(".") or type(error).__name__
    if isinstance(error, KeyError):
        said = f"{said} is not in the model's files"
    return UserError(f"It is not possible to {job['title']}: {said}.", str(job.get("hint", "")))
