"""A job that imports torch with its compiler."""

from __future__ import annotations

import sys
from typing import Any

from core.jobs.process import Answers, run_job


def work(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Import it."""
    import torch._dynamo

    return {"version": torch.__version__}


if __name__ == "__main__":
    sys.exit(run_job(work))
