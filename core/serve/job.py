"""The server of the app: a job that lasts until it is closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.jobs.job import Job, JobProgress
from core.serve.options import PORT, ServerAddress

PROGRAM = "core.serve"

ServeJob = Job[JobProgress, None]


def serve_job(
    target: str, ready: Callable[[ServerAddress], None], port: int = PORT, program: str | Sequence[str] = PROGRAM
) -> ServeJob:
    """A server whose progress is the model being loaded, or a warning, which ends with a full stop.

    Args:
        target: A run, ``RUN`` or ``RUN@STEP``, or a model.
        ready: Called once clients can connect.
        port: The port; 0 for any that is free.
        program: Another program in place of the server, for tests.
    """

    def hear(message: dict[str, Any]) -> None:
        if "ready" in message:
            told = message["ready"]
            ready(ServerAddress(str(told["url"]), str(told["key"]), tuple(map(str, told["models"]))))

    def work(job: ServeJob) -> None:
        job.call(program, {"targets": [target], "port": port}, job.report, hear=hear)

    return Job("the server", work, "Start it again.")
