"""A check that follows a plan in its request's model: it passes, fails, dies or hangs."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from core.jobs.process import Answers, run_job


def check(request: dict[str, Any], answers: Answers) -> dict[str, Any]:
    name, device = request["name"], request["device"]
    plan = json.loads(os.environ.get("SCRIPTED_PLAN") or request["sizes"]["model"])
    what = plan.get(name, "pass")
    answers.progress("working", 1, 2)
    if what == "code":
        os._exit(1)
    if what == "word":
        sys.stderr.write(f"\nbroken in {os.path.expanduser('~')}/models/x.py\n")
        sys.exit(3)
    if what == "hang":
        time.sleep(600)
    found = {"kind": "cuda", "name": "Card 9000"} if name == "driver" else None
    if what == "odd":
        return {"result": "perhaps", "detail": "?"}
    return {
        "result": what,
        "detail": f"{name} on {device.get('kind', 'unknown')}, in {request['work']}",
        "device": found,
    }


if __name__ == "__main__":
    sys.exit(run_job(check))
