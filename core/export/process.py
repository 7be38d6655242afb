"""Processes of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.directories import Progress
from core.jobs.job import JobProgress, call
from core.launch.launcher import worker_environment


def run_process(
    program: str | Sequence[str], request: Mapping[str, Any], title: str, progress: Progress, hint: str = ""
) -> dict[str, Any]:
    """Run a job of the worker (:mod:`core.worker.job`) to its end, without secrets in its environment.

    Args:
        program: As for :meth:`core.jobs.job.Job.call`.
        request: The same.
        title: Subject of messages about it: ``llama.cpp's converter``.
        progress: Called at least twice a second; an exception ends the process.
        hint: The remedy if it fails.

    Raises:
        UserError: If it fails.
    """
    environment = worker_environment()
    if "memory" in request:
        # Each thread of OpenBLAS takes some of that memory as numpy is imported.
        environment["OPENBLAS_NUM_THREADS"] = "1"

    def followed(at: JobProgress) -> None:
        progress(at.activity, at.done, at.total)

    return call(title, program, request, followed, hint=hint, beats=True, environment=environment)
