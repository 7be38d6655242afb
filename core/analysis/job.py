"""Analysis job: an analysis in separate processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

from core.analysis.result import Analysis, AnalysisRequest
from core.errors import UserError
from core.jobs.job import Job, JobDiedError, JobProgress

PROGRAM = "core.analysis.process"

AnalysisJob = Job[JobProgress, Analysis]


def analysis_job(request: AnalysisRequest) -> AnalysisJob:
    """A job that analyzes datasets. Activities of its progress: ``loading`` (the tokenizer, without a count),
    ``indexing`` (bytes), ``reading`` (rows) and ``comparing`` (rows).
    """
    hint = "Do it again, or look at a part of the rows."
    return Job("the analysis", partial(_analysis, request), hint)


def analyze(request: AnalysisRequest, progress: Callable[[JobProgress], None] | None = None) -> Analysis:
    """Run an analysis and wait for it.

    Raises:
        JobDiedError: If its process ends without a result.
        UserError: If a file cannot be read, its format is unknown or the model has no tokenizer.
    """
    return analysis_job(request).run(progress)


def _analysis(request: AnalysisRequest, job: AnalysisJob) -> Analysis:
    try:
        return Analysis.from_dict(job.call(PROGRAM, {"analysis": request.to_dict()}, job.report))
    except JobDiedError as error:
        if error.status != -signal.SIGXCPU:
            raise
        raise UserError(
            "The chat template or the tokenizer takes more time than any should, and does not stop.",
            "Take another template (template.file), or get the model again.",
        ) from None
