"""Jobs: what a process with one piece of work is told on standard input, and how it answers on standard output.

A job is one line of JSON: what is done (``title``), what helps where it fails (``hint``), where it writes (a file as
``target``, or a ``directory``), and what else its process asks for. A process with a limit of ``memory`` (bytes) is
confined: to that, to the files that it ``reads``, and to the directories that it ``writes`` to. Answers are lines of
JSON (:class:`~core.worker.process.answers.Answers`): ``progress`` as it gets on; at the end ``done`` with the result,
or ``error`` with ``hint`` (two sentences). Whatever else a library prints goes to standard error, which is the log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.atomic import NO_ROOM
from core.directories import disk_error
from core.errors import UserError, is_panic
from core.helper import private_output, tie_to_parent
from core.sandbox.limits import confine
from core.sandbox.rights import Rights
from core.text import one_line
from core.worker.process import environment
from core.worker.process.answers import Answers
from core.worker.process.log import log_exception

#: Seconds between two looks at the size of a file.
_INTERVAL = 0.2


@contextlib.contextmanager
def growing(answers: Answers, activity: str, path: Path, total: int) -> Iterator[None]:
    """Inside, report the size of a file that is written.

    Args:
        answers: Where it is reported.
        activity: What goes on.
        path: The file.
        total: Its bytes in the end, as far as they are known.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_INTERVAL):
            with contextlib.suppress(OSError):
                answers.progress(activity, min(path.stat().st_size, total), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def run_job(work: Callable[[dict[str, Any], Answers], dict[str, Any]]) -> int:
    """Do the job on standard input, in a process of its own.

    Args:
        work: Does it; its result is the last answer.

    Returns:
        The exit code.
    """
    tie_to_parent()
    environment.prepare()
    os.umask(0o077)
    answers = Answers(private_output())
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    if "memory" in job:
        _confine(job)
    failure = _attempt(work, job, answers)
    if failure is None:
        return 0
    answers.send({"error": failure.message, "hint": failure.hint})
    return 1


def _confine(job: dict[str, Any]) -> None:
    reads, writes = (tuple(map(str, job.get(name, ()))) for name in ("reads", "writes"))
    # torch makes a directory for compiled code as it is imported, if it is not there.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = next(iter(writes), "/proc")
    confine(int(job["memory"]), Rights(reads, writes))


def _attempt(
    work: Callable[[dict[str, Any], Answers], dict[str, Any]], job: dict[str, Any], answers: Answers
) -> UserError | None:
    """Do a job and answer with its result; the error in words if it fails."""
    try:
        answers.send({"done": work(job, answers)})
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
