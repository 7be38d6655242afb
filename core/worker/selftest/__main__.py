"""A check of the self-test: ``python -m core.worker.selftest NAME``.

It reads one request as a line of JSON from standard input, ``{"work", "sizes", "device"}``, and writes lines of JSON:
``{"progress"}`` and ``{"device"}`` as they come, and ``{"result", "detail"}`` at the end. Its runs are processes of its
own group, which end with it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from core.errors import UserError
from core.helper import tie_to_parent
from core.selftest.sizes import Sizes
from core.worker.process.log import log, log_exception
from core.worker.selftest.bench import Bench, Outcome

#: Check to the module that makes it.
MODULES = {
    "prepare": "prepare",
    "driver": "driver",
    "fast_paths": "fast_paths",
    "training": "training",
    "memory": "memory",
    "resume": "resume",
    "out_of_memory": "shortage",
    "speed": "speed",
}
#: Seconds between two reports of progress.
_INTERVAL = 0.1


class _Answers:
    """Writes messages, progress at a limited rate.

    Args:
        stream: Where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0.0
        self._activity = ""

    def progress(self, activity: str, done: int | None, total: int | None) -> None:
        """Report progress."""
        now = time.monotonic()
        if now >= self._next or activity != self._activity or done == total:
            self._next, self._activity = now + _INTERVAL, activity
            self.send({"progress": {"activity": activity, "done": done, "total": total}})

    def send(self, message: dict[str, Any]) -> None:
        """Write a message as one line."""
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()


def main(name: str, answers: _Answers, line: str) -> None:
    """Make a check, and say what came of it."""
    request = json.loads(line)
    sizes = Sizes.from_dict(request["sizes"])
    bench = Bench(Path(request["work"]), sizes, dict(request["device"]), answers.progress)
    try:
        outcome = importlib.import_module(f"core.worker.selftest.{MODULES[name]}").check(bench)
    except UserError as error:
        log(f"error: {error}")
        outcome = Outcome("fail", str(error))
    except Exception as error:  # of whatever library or driver: it is this check that has failed
        log_exception()
        first = (str(error).splitlines() or [""])[0]
        outcome = Outcome("fail", f"{type(error).__name__}: {first}")
    if outcome.device is not None:
        answers.send({"device": outcome.device})
    answers.send({"result": outcome.result, "detail": outcome.detail})


if __name__ == "__main__":
    tie_to_parent()
    # What libraries and runs print must not come between the messages.
    private = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(sys.argv[1], _Answers(private), sys.stdin.readline())
