"""An export whose program is killed: ``python -m tests.core.export.killed_export RUN``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from core.export.job import ExportJob
from core.export.request import ExportRequest
from core.helper import HelperProgress


def look(progress: HelperProgress) -> None:
    """Kill this process when the weights are merged."""
    if progress.activity == "merging the weights":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    ExportJob(ExportRequest(Path(sys.argv[1]), "merged", rows=1)).run(look)
