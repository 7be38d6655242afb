"""A process in place of that of an export, which does as the variable ``SCRIPTED_EXPORT`` says: ``result``, ``error``
or ``hang``."""

from __future__ import annotations

import json
import os
import sys
import time

from core.export.plan import plan_export
from core.export.request import ExportRequest
from core.export.result import Agreement, ExportedFile, ExportResult
from core.helper import tie_to_parent


def send(**message: object) -> None:
    """Write a message."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer one request."""
    tie_to_parent()
    request = ExportRequest.from_dict(json.loads(sys.stdin.readline())["request"])
    how = os.environ["SCRIPTED_EXPORT"]
    send(progress={"activity": "merging the\x1b[31m weights", "done": 1, "total": 4})
    if how == "hang":
        sys.stdin.read()
        time.sleep(600)
    if how == "error":
        send(error="The export has failed: Its mean divergence is 0.3 nats.", hint="Choose a type with more bits.")
        return
    plan = plan_export(request)
    result = ExportResult(
        path=plan.target,
        kind=request.kind,
        quant=request.weights,
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
    )
    send(done=result.to_dict())


if __name__ == "__main__":
    main()
