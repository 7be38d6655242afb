"""A job that follows the steps in its request: ``python -m tests.core.jobs.scripted``."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from core.errors import UserError
from core.jobs.process import Answers, run_job


def work(request: dict[str, Any], answers: Answers) -> dict[str, Any]:
    os.write(1, b"a library says something\n")
    answers.progress("at work\x1b[2J", 1, 4)
    for step in request["steps"]:
        match step:
            case "ask":
                answers.ask({"question": "shall it?"})
            case "error":
                raise UserError("It is\x1b[2J broken.", "Mend it.")
            case "fault":
                os.write(2, b"Fatal Python error: Segmentation fault\n\nThread 0x1:\n  File x, line 1\n")
                os.kill(os.getpid(), signal.SIGSEGV)
            case "garbage":
                answers.send({"progress": {"activity": ["odd"], "done": "many", "total": True}})
                answers.send({"done": "no object"})
            case "hang":
                signal.pause()
            case "leave":
                sys.stderr.write("first\n last word\x1b[2J.\n")
                sys.stderr.flush()
                os._exit(3)
            case "kill":
                answers._stream.write(b'{"done": {"vari')
                answers._stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    return {"variable": os.environ.get("OF_THE_JOB"), "umask": oct(os.umask(0))}


if __name__ == "__main__":
    sys.exit(run_job(work))
