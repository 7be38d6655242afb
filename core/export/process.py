"""Processes that do the work of an export: started with a job, told what goes on, ended with whoever asked."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from core.directories import Progress
from core.errors import UserError
from core.helper import Helper, describe_end
from core.launch.launcher import worker_environment
from core.text import one_line

#: Seconds between two reports of progress, while a process says nothing.
_BEAT = 0.5
#: Bytes at the end of a log that are looked at for the last words of a process.
_LOG_LIMIT = 64 << 10


def run_process(module: str | Sequence[str], job: Mapping[str, Any], title: str, progress: Progress) -> dict[str, Any]:
    """Run a process to its end.

    It has no secrets in its environment and does not use the network; it ends with this process, and when
    ``progress`` raises.

    Args:
        module: The module that it runs, which reads the job and answers as :mod:`core.worker.process.job` does; or a
            command line.
        job: What it is to do, as JSON has it.
        title: What it is, for the sentence about its failure: ``the converter``.
        progress: Told what goes on, twice a second at least; it may raise to give up.

    Returns:
        What it answers in the end.

    Raises:
        UserError: If it fails.
    """
    answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
    last: tuple[str, int | None, int | None] = (f"starting {title}", None, None)
    environment = worker_environment()
    if "memory" in job:
        # numpy's threads would be there before the process is confined, and outside of its walls.
        environment["OPENBLAS_NUM_THREADS"] = "1"
    with tempfile.TemporaryFile() as log, Helper(module, environment=environment, log=log.fileno()) as helper:

        def read() -> None:
            with contextlib.suppress(ValueError, OSError):  # a closed pipe, or half a line of a process that was killed
                for answer in helper.answers():
                    answers.put(answer)
            answers.put(None)

        reading = threading.Thread(target=read, name="export", daemon=True)
        reading.start()
        try:
            with contextlib.suppress(OSError):  # it has ended already, which its missing answer tells
                helper.send(json.dumps(dict(job)).encode() + b"\n")
            while True:
                try:
                    answer = answers.get(timeout=_BEAT)
                except queue.Empty:
                    progress(*last)
                    continue
                if answer is None:
                    raise _ended(title, helper.process.wait(), last_line(log.fileno()), str(job.get("hint", "")))
                if "done" in answer:
                    return dict(answer["done"])
                if "error" in answer:
                    raise UserError(one_line(answer["error"]), one_line(answer["hint"]))
                told = answer["progress"]
                last = (one_line(told["activity"]), told["done"], told["total"])
                progress(*last)
        finally:
            helper.end()
            reading.join()


def last_line(log: int) -> str:
    """The last line of a log that says something; empty if there is none.

    Args:
        log: The descriptor of the file.
    """
    size = os.fstat(log).st_size
    tail = os.pread(log, _LOG_LIMIT, max(size - _LOG_LIMIT, 0)).decode("utf-8", errors="replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return one_line(lines[-1], 300).rstrip(".") if lines else ""


def _ended(title: str, status: int, said: str, hint: str) -> UserError:
    # After a signal, the log ends with where each thread was.
    words = f": {said}" if said and status >= 0 else " without a result"
    return UserError(
        f"{title[0].upper()}{title[1:]} {describe_end(status)}{words}.",
        f"If memory ran out, close other programs and try again. {hint}".strip(),
    )
