"""The process of a job: its request on standard input, its answers on standard output.

A request (:mod:`core.jobs.job`) has ``title`` and ``hint``, the file or directory that is written (``target`` or
``directory``), and the fields of its work. A request with ``memory`` (bytes) confines the process to that much memory,
to the files that it ``reads``, and to the directories that it ``writes`` to. Standard error is the log, also for the
output of libraries.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from core import paths
from core.atomic import NO_ROOM
from core.directories import disk_error
from core.errors import UserError, is_panic
from core.helper import private_output, tie_to_parent
from core.jobs.job import subject
from core.redact import redact
from core.sandbox.limits import confine
from core.sandbox.rights import Rights
from core.text import one_line

#: Seconds between two reports of progress, and between two looks at the size of a file.
_INTERVAL, _LOOK = 0.1, 0.2


class Answers:
    """Messages of a process to the owner of its job; may be used from several threads.

    Args:
        stream: Output stream, see :func:`core.helper.private_output`.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._next = 0.0
        self._activity = ""

    def progress(self, activity: str, done: int | None = None, total: int | None = None) -> None:
        """Report progress, at a limited rate; a new activity and a last count are always reported."""
        now = time.monotonic()
        if now >= self._next or activity != self._activity or (done is not None and done == total):
            self._next, self._activity = now + _INTERVAL, activity
            self.send({"progress": {"activity": activity, "done": done, "total": total}})

    def send(self, message: dict[str, Any]) -> None:
        """Write a message as one line.

        Raises:
            ValueError: If a number in it is not finite, which JSON cannot represent.
        """
        line = json.dumps(message, allow_nan=False).encode("ascii") + b"\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()

    def ask(self, message: dict[str, Any]) -> None:
        """Send a message and wait for the reply.

        Raises:
            EOFError: If the owner is gone.
        """
        self.send(message)
        if not sys.stdin.readline():
            raise EOFError


#: Work of a process: from its request to its result.
Work = Callable[[dict[str, Any], Answers], dict[str, Any]]


def run_job(work: Work) -> int:
    """Do the job on standard input, in a process of its own.

    Returns:
        The exit code.
    """
    tie_to_parent()
    os.umask(0o077)
    answers = Answers(private_output())
    request: dict[str, Any] = json.loads(sys.stdin.readline())
    if "memory" in request:
        reads, writes = (tuple(map(str, request.get(name, ()))) for name in ("reads", "writes"))
        # torch makes a directory for compiled code as it is imported, if it is not there.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = next(iter(writes), "/proc")
        confine(int(request["memory"]), Rights(reads, writes))
    answer = answer_to(work, request, answers)
    answers.send(answer)
    return 0 if "done" in answer else 1


def answer_to(work: Work, request: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """The last answer to a request: ``done``, or ``error`` and ``hint``.

    Args:
        work: The work.
        request: The request.
        answers: Receives all other messages.
    """
    title = subject(str(request["title"]))
    try:
        return {"done": work(request, answers)}
    except UserError as error:
        failure = error
    except MemoryError:
        failure = UserError(f"{title} ran out of memory.", f"Close other programs. {request['hint']}".strip())
    except BaseException as error:
        # Libraries in Rust panic with a base exception of their own.
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        with contextlib.suppress(OSError):  # the log may be on a full disk
            sys.stderr.write(redact(traceback.format_exc()))
        if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EACCES, errno.EROFS):
            target = Path(request["target"]).parent if "target" in request else request.get("directory", paths.home())
            failure = disk_error(Path(target), error)
        else:
            failure = UserError(f"{title} failed: {described(error)}.", str(request["hint"]))
    return {"error": failure.message, "hint": failure.hint}


def described(error: BaseException) -> str:
    """An exception in words: its type, and the first line of its text."""
    first = one_line(str(error).strip().partition("\n")[0], 300).rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@contextlib.contextmanager
def growing(answers: Answers, activity: str, path: Path, total: int) -> Iterator[None]:
    """Report the size of a file while the block writes it.

    Args:
        answers: Receives the progress.
        activity: The activity.
        path: The file.
        total: Its expected size in bytes.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK):
            with contextlib.suppress(OSError):
                answers.progress(activity, min(path.stat().st_size, total), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
