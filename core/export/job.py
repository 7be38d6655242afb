"""Export jobs: in their own process, which can be ended at any time and leaves nothing behind."""

from __future__ import annotations

import contextlib
from functools import partial

from core import paths
from core.directories import remove_abandoned
from core.errors import UserError
from core.export.plan import plan_export
from core.export.request import ExportRequest
from core.export.result import ExportResult
from core.jobs.job import Job, JobProgress
from core.launch.launcher import worker_environment

PROGRAM = "core.worker.job export"

ExportJob = Job[JobProgress, ExportResult]


def export_job(request: ExportRequest) -> ExportJob:
    """An export job. It fails if the export cannot be written, or does not answer as the trained model; nothing remains
    then, or when the job is closed."""
    return Job("the export", partial(_export, request), "Export it again.")


def _export(request: ExportRequest, job: ExportJob) -> ExportResult:
    plan = plan_export(request)
    plan.check()
    # Later failures have cost time.
    if request.out is None:
        paths.make_private_dir(plan.target.parent)
    elif not plan.target.parent.is_dir():
        raise UserError(f"There is no directory {plan.target.parent}.", "Make it, or name another place with --out.")
    with contextlib.suppress(OSError):  # leftovers of killed exports
        for leftover in paths.exports_dir().glob(".*.tmp"):
            remove_abandoned(leftover)
    values = {"request": request.to_dict(), "directory": str(plan.target.parent)}
    try:
        return ExportResult.from_dict(job.call(PROGRAM, values, job.report, environment=worker_environment()))
    finally:
        # The directory that a killed process was filling.
        remove_abandoned(plan.target.with_name(f".{plan.target.name}.{job.pid}.tmp"))
