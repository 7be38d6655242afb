"""A process of checks: ``python -m bench.gpu_checks.child``.

It reads requests as lines of JSON from standard input, ``{"check", "work", "models", "tiny", "device"}``, and answers
each with a line, ``{"result", "detail", "figures", "poisoned"}``. The check ``device`` answers with the facts about the
device.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench.gpu_checks.report import jsonable
from bench.gpu_checks.subjects import SUBJECTS, Found
from bench.gpu_checks.trainer import Stand
from core.errors import UserError
from core.helper import tie_to_parent
from core.worker.libraries import import_libraries
from core.worker.process import environment
from core.worker.process.log import log, log_exception

#: Variable that keeps SDPA from cuDNN's attention on Hopper, which other cards do not take.
DEPRIORITIZED = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}


def device_facts(stand: Stand) -> dict[str, Any]:
    """Facts about the device, as the self-test finds them."""
    from core.selftest.sizes import Sizes
    from core.worker.selftest.check import Bench
    from core.worker.selftest.driver import check

    outcome = check(Bench(stand.work, Sizes(), {}, lambda *_: None))
    return {**(outcome.device or {}), "told": outcome.detail}


def answer(request: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Make a check; whatever it raises, it is this check that has failed."""
    stand = Stand(Path(request["work"]), Path(request["models"]), bool(request["tiny"]), dict(request["device"]), kept)
    if request["check"] == "device":
        return {"device": device_facts(stand)}
    poisoned = False
    try:
        subject = next(subject for subject in SUBJECTS if subject.number == request["check"])
        module = importlib.import_module(f"bench.gpu_checks.{subject.module}")
        found: Found = getattr(module, f"check_{subject.number}")(stand)
    except UserError as error:
        log(f"error: {error}")
        found = Found("fail", f"{error.message} {error.hint}".strip(), {})
    except Exception as error:  # of whatever library or driver
        log_exception()
        # What else this process would measure is not to be believed.
        poisoned = True
        found = Found("fail", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", {})
    return {"result": found.result, "detail": found.detail, "figures": jsonable(found.figures), "poisoned": poisoned}


def main() -> None:
    """Answer requests until there are none."""
    tie_to_parent()
    # What libraries print must not come between the answers.
    private = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ.update(DEPRIORITIZED)
    environment.prepare()
    import_libraries()
    kept: dict[str, Any] = {}
    for line in sys.stdin:
        private.write(json.dumps(answer(json.loads(line), kept)) + "\n")
        private.flush()


if __name__ == "__main__":
    main()
