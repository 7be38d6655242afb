"""The agent with ranks that do not train.

``FAKE_RANK`` selects what they do: ``train`` until they are killed, or ``fail`` with some last words. Each writes its
pid to the file of its number in ``FAKE_PIDS``.
"""

from __future__ import annotations

import sys

from core.launch import launcher
from core.launch.nodes import agent
from core.runs.store import Run

_RANK = """
import json, os, pathlib, sys, time
from core.helper import tie_to_parent
tie_to_parent()
names = ("RANK", "WORLD_SIZE", "GLOO_SOCKET_IFNAME")
print("rank", json.dumps({name: os.environ.get(name) for name in names}), sys.argv[1:], flush=True)
pids = pathlib.Path(os.environ["FAKE_PIDS"])
(pids / (os.environ["RANK"] + ".new")).write_text(str(os.getpid()))
(pids / (os.environ["RANK"] + ".new")).rename(pids / os.environ["RANK"])
if os.environ["FAKE_RANK"] == "fail":
    print("RuntimeError: the card fell off the bus", file=sys.stderr)
    sys.exit(4)
while os.environ["FAKE_RANK"] == "train":
    time.sleep(0.05)
"""


def command(run: Run, *, resume: bool = False) -> list[str]:
    """The command line of a rank."""
    return [sys.executable, "-c", _RANK, str(run.path), *(["--resume"] if resume else [])]


if __name__ == "__main__":
    launcher.worker_command = command
    sys.exit(agent.main())
