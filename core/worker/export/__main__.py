"""The process of an export: ``python -m core.worker.export``, whose job has a ``request``
(:class:`core.export.request.ExportRequest`), and whose answer is a :class:`core.export.result.ExportResult`.
"""

from __future__ import annotations

import sys
from typing import Any

from core.export.request import ExportRequest
from core.worker.process.answers import Answers
from core.worker.process.job import run_job


def export(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Make an export."""
    request = ExportRequest.from_dict(job["request"])
    answers.progress("importing the libraries")
    # Once the environment is prepared.
    from core.worker.export.export import Export

    return Export(request, answers.progress).make().to_dict()


if __name__ == "__main__":
    sys.exit(run_job(export))
