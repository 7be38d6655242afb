"""An export whose program is killed: ``python -m tests.core.export.killed_export RUN``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from core.export.job import export_job
from core.export.plan import plan_export
from core.export.request import ExportRequest
from core.jobs.job import JobProgress


def look(progress: JobProgress) -> None:
    """Kill this process when the weights are merged."""
    if progress.activity == "merging the weights":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    export_job(plan_export(ExportRequest(Path(sys.argv[1]), "merged", rows=1))).run(look)
