"""A check of the self-test: ``python -m core.worker.selftest NAME``.

It reads one request as a line of JSON from standard input, ``{"work", "sizes", "device"}``, and writes lines of JSON:
``{"progress"}`` and ``{"device"}`` as they come, and ``{"result", "detail"}`` at the end. Its runs are processes of its
own group, which end with it.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from core.errors import UserError
from core.helper import private_output, tie_to_parent
from core.selftest.sizes import Sizes
from core.worker.process.answers import Answers
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


def main(name: str, answers: Answers, line: str) -> None:
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
    main(sys.argv[1], Answers(private_output()), sys.stdin.readline())
