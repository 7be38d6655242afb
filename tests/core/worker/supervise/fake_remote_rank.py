"""What runs a rank on another machine, with a rank that does not train.

``FAKE_RANK`` selects what it does: ``train`` until it is killed, or ``fail`` with some last words. It writes its pid to
the file of its number in ``FAKE_PIDS``.
"""

from __future__ import annotations

import sys

from core.runs.record.store import Run
from core.worker.supervise import remote_rank

_RANK = """
import json, os, pathlib, sys, time
from core.worker.process.reports import report_to_supervisor
reports = report_to_supervisor()
reports.tell(host="tower", pid=os.getpid(), device="cpu")
interfaces = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCALTUNE_MEETING", *interfaces, "SSH_AUTH_SOCK")
print(json.dumps({name: os.environ.get(name) for name in names}), flush=True)
print(sorted(str(path) for path in pathlib.Path(sys.argv[1]).rglob("*.*")), sys.argv[2:], flush=True)
pids = pathlib.Path(os.environ["FAKE_PIDS"])
(pids / "new").write_text(str(os.getpid()))
(pids / "new").rename(pids / os.environ["RANK"])
if os.environ["FAKE_RANK"] == "fail":
    print("RuntimeError: the card fell off the bus", file=sys.stderr)
    sys.exit(70)
while True:
    time.sleep(0.05)
"""


def command(run: Run, *, resume: bool = False) -> list[str]:
    """The command line of a rank."""
    return [sys.executable, "-c", _RANK, str(run.path), *(["--resume"] if resume else [])]


if __name__ == "__main__":
    remote_rank.worker_command = command  # type: ignore[attr-defined]
    sys.exit(remote_rank.main())
