"""A worker without torch for tests of the runner's process: it trains until a file says that it may finish.

``quick_worker.py RUN [--resume]`` writes a line into ``starts`` of the home, and one into ``overlaps`` where another
worker has the device.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from core import paths
from core.runs.record.files import hold_worker_lock
from core.runs.record.state import RunState, hostname, own_identity
from core.runs.record.store import Run


def main() -> int:
    run = Run(Path(sys.argv[1]))
    hold_worker_lock(run)
    with (paths.home() / "starts").open("a") as file:
        file.write(f"{run.id}\n")
    device = os.open(paths.home() / "device", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (paths.home() / "overlaps").write_text(run.id)
    pid, identity = own_identity()
    state = RunState(state="training", pid=pid, pid_started=identity, host=hostname(), updated=time.time())
    state.write(run.state_path)
    while not (paths.home() / "go").exists():
        time.sleep(0.01)
    replace(state, state="finished", updated=time.time()).write(run.state_path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
