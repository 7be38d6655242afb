"""A check of the self-test, as a job."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.jobs.process import Answers, described
from core.selftest.sizes import Sizes
from core.worker.process.log import log, log_exception
from core.worker.selftest.bench import Bench, Outcome


def check(request: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Make a check; whatever it raises is its failure.

    Args:
        request: ``name`` of the check, its directory (``work``), ``sizes`` and ``device``.
        answers: Receives the progress.

    Returns:
        ``result``, ``detail``, and ``device`` from the check that finds it.
    """
    sizes = Sizes.from_dict(request["sizes"])
    bench = Bench(Path(request["work"]), sizes, dict(request["device"]), answers.progress)
    name = {"out_of_memory": "shortage"}.get(request["name"], request["name"])
    try:
        outcome = importlib.import_module(f"core.worker.selftest.{name}").check(bench)
    except UserError as error:
        log(f"error: {error}")
        outcome = Outcome("fail", str(error))
    except Exception as error:  # of any library or driver: this check has failed, and no other
        log_exception()
        outcome = Outcome("fail", described(error))
    return {"result": outcome.result, "detail": outcome.detail, "device": outcome.device}
