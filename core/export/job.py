"""Export jobs: in their own process, which can be ended at any time and leaves nothing behind; and its processes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from core import paths
from core.directories import Progress, remove_abandoned
from core.errors import UserError
from core.export.plan import ExportPlan
from core.export.result import ExportResult
from core.jobs.job import Job, JobProgress, call
from core.launch.launcher import worker_environment

PROGRAM = "core.worker.job export"


@dataclass(frozen=True)
class ExportProgress(JobProgress):
    """Progress of an export: ``done`` of ``total`` estimated seconds. ``done`` only grows; ``total`` only shrinks,
    where a stage is left out.

    Args:
        written: The directory of the export, once its files are in place, unproven; None before.
    """

    written: Path | None = None


ExportJob = Job[ExportProgress, ExportResult]


def export_job(plan: ExportPlan) -> ExportJob:
    """An export job: the files first, then their proof.

    It fails if they cannot be written, and nothing remains then, or when the job is closed before. If the proof fails,
    the directory is renamed to ``NAME-failed``; if it is broken off, or the job is closed meanwhile, the files stay in
    their place, unproven.
    """
    return Job("the export", partial(_export, plan), "Export it again.")


def _export(plan: ExportPlan, job: ExportJob) -> ExportResult:
    plan.check()
    # Later failures have cost time.
    if plan.request.out is None:
        paths.make_private_dir(plan.target.parent)
    elif not plan.target.parent.is_dir():
        raise UserError(f"There is no directory {plan.target.parent}.", "Make it, or name another place with --out.")
    with contextlib.suppress(OSError):  # leftovers of killed exports
        for leftover in paths.exports_dir().glob(".*.tmp"):
            remove_abandoned(leftover)
    values = {"plan": plan.to_dict(), "directory": str(plan.target.parent)}
    written: Path | None = None

    def hear(message: dict[str, Any]) -> None:
        nonlocal written
        written = plan.target if message.get("written") else None

    def follow(at: JobProgress) -> None:
        job.report(ExportProgress(at.activity, at.done, at.total, written))

    try:
        found = job.call(PROGRAM, values, follow, hear=hear, environment=worker_environment())
        return ExportResult.from_dict(found)
    finally:
        # The directory that a killed process was filling.
        remove_abandoned(plan.target.with_name(f".{plan.target.name}.{job.pid}.tmp"))


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
