"""A process in place of an export's; ``SCRIPTED_EXPORT`` is ``result``, ``written``, ``error`` or ``hang``."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from core.errors import UserError
from core.export.plan import ExportPlan
from core.export.result import Agreement, ExportedFile, ExportResult
from core.jobs.process import Answers, run_job


def export(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Answer one request."""
    plan = ExportPlan.from_dict(job["plan"])
    how = os.environ["SCRIPTED_EXPORT"]
    answers.progress("merging the\x1b[31m weights", 1, 4)
    if how == "hang":
        time.sleep(600)
    if how == "error":
        raise UserError("The export has failed: Its mean divergence is 0.3 nats.", "Choose a type with more bits.")
    if how == "written":
        plan.target.mkdir(parents=True)
        (plan.target / "tickets.gguf").write_bytes(bytes(1000))
    answers.send({"written": True})
    answers.progress("measuring the file", 3, 4)
    if how == "written":
        time.sleep(600)
    return ExportResult(
        path=plan.target,
        kind=plan.request.kind,
        quant=plan.request.weights,
        run=plan.trained.run.id,
        step=plan.trained.step,
        base="base",
        base_sha256=None,
        merged_from=None,
        files=(ExportedFile("tickets-Q4_K_M.gguf", 105_000_000, "ab"), ExportedFile("README.md", 900, "cd")),
        agreement=Agreement(20, True, 0.0123, 0.975, 0.5, 19, "llama.cpp b1", greedy_rows=20, data="eval"),
        notes=("One thing to know.",),
        seconds=61,
        created=1.0,
    ).to_dict()


if __name__ == "__main__":
    sys.exit(run_job(export))
