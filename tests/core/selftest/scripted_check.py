"""A check that does what its request's model says: ends well or badly, says nothing, hangs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from core.helper import tie_to_parent


def main(name: str) -> None:
    request = json.loads(sys.stdin.readline())
    plan = json.loads(os.environ.get("SCRIPTED_PLAN") or request["sizes"]["model"])
    what = plan.get(name, "pass")
    say({"progress": {"activity": "working", "done": 1, "total": 2}})
    sys.stdout.write("not a message\n[1]\n")
    if name == "driver":
        say({"device": {"kind": "cuda", "name": "Card 9000"}})
    if what == "code":
        sys.exit(1)
    if what == "signal":
        os.kill(os.getpid(), signal.SIGBUS)
    if what == "word":
        sys.stderr.write(f"\nbroken in {os.path.expanduser('~')}/models/x.py\n")
        sys.exit(3)
    if what == "hang":
        time.sleep(600)
    if what == "odd":
        say({"result": "perhaps", "detail": "?"})
        return
    kind = request["device"].get("kind", "unknown")
    say({"result": what, "detail": f"{name} on {kind}, in {request['work']}"})


def say(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    tie_to_parent()
    main(sys.argv[1])
