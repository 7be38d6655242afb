"""The runner's process with fake workers that wait for a file, and looks that follow quickly on each other."""

from __future__ import annotations

import functools
import os
import sys

from core.launch import launcher
from core.queue import __main__ as process
from core.queue import runner
from core.runs.record.store import Run


def command(run: Run, *, resume: bool = False) -> list[str]:
    """The command line of the worker."""
    return [sys.executable, "-m", "tests.core.launch.fake_worker", str(run.path), *(["--resume"] if resume else [])]


if __name__ == "__main__":
    os.environ["FAKE_WORKER"] = "wait"
    launcher.worker_command = command
    quick = runner.Pace(follow=0.02, soonest=0.02, latest=0.1)
    vars(process)["QueueRunner"] = functools.partial(runner.QueueRunner, pace=quick)
    sys.exit(process.main([]))
