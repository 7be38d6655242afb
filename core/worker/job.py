"""Jobs that need torch, run as one program: ``python -m core.worker.job NAME``.

See :mod:`core.jobs.process` for requests and answers, and each function for its fields.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from core.jobs.process import Answers, run_job
from core.worker.process import environment

#: Functions by job name.
JOBS = {
    "attribute": "core.worker.attribution.job:attribute",
    "attribution-index": "core.worker.attribution.job:make_index",
    "audit": "core.worker.audit.audit:audit",
    "convert": "core.worker.export.gguf.convert:convert",
    "convert-adapter": "core.worker.export.gguf.adapter:convert_adapter",
    "export": "core.worker.export.export:export",
    "importance": "core.worker.export.gguf.quantize:compute_importance",
    "measure-4-bits": "core.worker.quantization.job:measure",
    "measure-model": "core.worker.measure.job:measure",
    "probe": "core.worker.process.probe:probe",
    "quantize": "core.worker.export.gguf.quantize:quantize",
    "row-losses": "core.worker.evaluate.row_losses:measure",
    "self-test": "core.worker.selftest.check:check",
    "verify": "core.worker.export.verify.job:measure",
}


def main(name: str) -> int:
    """Do a job; returns the exit code."""
    environment.prepare()
    module, _, function = JOBS[name].partition(":")

    def work(request: dict[str, Any], answers: Answers) -> dict[str, Any]:
        answers.progress("importing the libraries")
        # Imported only after the process is confined: threads that numpy starts before would escape the limits.
        result: dict[str, Any] = getattr(importlib.import_module(module), function)(request, answers)
        return result

    return run_job(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
