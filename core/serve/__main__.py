"""The server as a job of the app: ``python -m core.serve`` ends when the app does; see :mod:`core.jobs.process`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from typing import Any

from core.errors import UserError
from core.jobs.process import Answers, run_job


def serve(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Serve until the end.

    Args:
        job: ``targets`` and ``port``.
        answers: Receives the progress of loading, and ``ready`` with the address once clients can connect.
    """
    from core.serve.options import check_installed

    check_installed()
    from core.serve.options import KEY_VARIABLE, ServeOptions, open_listener
    from core.serve.server import serve as run_server

    options = ServeOptions(tuple(job["targets"]), port=job["port"], key=os.environ.get(KEY_VARIABLE, ""))
    try:
        open_listener(options).close()
    except UserError:
        # Another program has it, perhaps another app: any port will do, as it is shown.
        options = replace(options, port=0)
    run_server(options, lambda address: answers.send({"ready": asdict(address)}), answers.progress)
    return {}


if __name__ == "__main__":
    sys.exit(run_job(serve))
