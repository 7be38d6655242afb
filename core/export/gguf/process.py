"""Processes that do the work of an export: started with a job, told what goes on, ended with whoever asked."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from core.directories import Progress
from core.errors import UserError
from core.helper import Helper, describe_end
from core.hub.offline import OFFLINE
from core.launch.launcher import worker_environment
from core.text import one_line

#: The most characters of what a process says about its failure.
_DETAIL = 600
_LOG_LIMIT = 64 << 10


def run_process(module: str, job: Mapping[str, Any], title: str, progress: Progress) -> dict[str, Any]:
    """Run a process to its end.

    It has no secrets in its environment and does not use the network; it ends with this process, and when
    ``progress`` raises.

    Args:
        module: The module that it runs, which reads the job and answers as :mod:`core.worker.export.gguf.job` does.
        job: What it is to do, as JSON has it.
        title: What it is, for the sentence about its failure: ``the converter``.
        progress: Told what goes on, a few times a second; it may raise to give up.

    Returns:
        What it answers in the end.

    Raises:
        UserError: If it fails.
    """
    environment = worker_environment() | OFFLINE
    with tempfile.TemporaryFile() as log:
        with Helper(module, environment=environment, log=log.fileno()) as helper:
            # A process that ended already is told of below, by its answer.
            with contextlib.suppress(OSError):
                helper.send(json.dumps(dict(job)).encode() + b"\n")
            with contextlib.suppress(OSError):
                helper.stdin.close()
            for answer in helper.answers():
                if "progress" in answer:
                    detail, done, total = answer["progress"]
                    progress(str(detail), done, total)
                elif "error" in answer:
                    raise UserError(str(answer["error"])[:_DETAIL], str(answer.get("hint", ""))[:_DETAIL])
                elif "done" in answer:
                    return dict(answer["done"])
            # Its own end, after the end of its output.
            status = helper.process.wait()
        raise _ended(title, status, _last_line(log.fileno()))


def _last_line(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _LOG_LIMIT, max(size - _LOG_LIMIT, 0)).decode("utf-8", errors="replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return one_line(lines[-1], 300).rstrip(".") if lines else ""


def _ended(title: str, status: int, said: str) -> UserError:
    shown = f"{title[0].upper()}{title[1:]} {describe_end(status)}"
    # After a signal, the log ends with where each thread was.
    return UserError(
        f"{shown}{f': {said}' if said and status >= 0 else ''}.",
        "If memory ran out, close other programs and try again; otherwise export merged, and convert it elsewhere.",
    )
