"""A worker without torch, for tests of the processes around it: ``fake_worker.py RUN [--resume]``.

``FAKE_WORKER`` selects its behavior: ``train`` until SIGTERM, ``report`` its surroundings and finish, ``crash`` before
it writes anything, ``deaf`` (trains and ignores SIGTERM), ``wait`` for the file ``go`` in the home
and finish, with a note in ``overlaps`` where another worker has the device. Each start is a line in ``starts``.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from core import paths
from core.errors import UserError
from core.runs.record.state import RunState, hostname, own_identity
from core.runs.record.store import Run, hold_worker_lock


def main() -> int:
    run, mode = Run(Path(sys.argv[1])), os.environ["FAKE_WORKER"]
    if mode == "crash":
        sys.stderr.write("loading\n")
        raise ValueError("no such weights\x1b[31m")
    try:
        hold_worker_lock(run)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 5
    with (paths.home() / "starts").open("a") as file:
        file.write(f"{run.id} {' '.join(sys.argv[2:])}\n")
    if mode == "report":
        (run.path / "report.json").write_text(json.dumps(surroundings()))
    pid, identity = own_identity()
    state = RunState(
        state="training", pid=pid, pid_started=identity, host=hostname(), step=3, total_steps=9, updated=time.time()
    )
    if mode == "report":
        replace(state, state="finished").write(run.state_path)
        return 0
    if mode == "wait":
        device = os.open(paths.home() / "device", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (paths.home() / "overlaps").write_text(run.id)
        state.write(run.state_path)
        while not (paths.home() / "go").exists():
            time.sleep(0.01)
        replace(state, state="finished", updated=time.time()).write(run.state_path)
        return 0
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True) if mode == "train" else None)
    state.write(run.state_path)
    while not stopped:
        time.sleep(0.01)
    replace(state, state="stopped", reason="asked by SIGTERM").write(run.state_path)
    return 3


def surroundings() -> dict[str, object]:
    """The environment of the process."""
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
    old_mask = os.umask(0o077)
    return {
        "cwd": os.getcwd(),
        "session": os.getsid(0),
        "pid": os.getpid(),
        "environment": dict(os.environ),
        "descriptors": descriptors,
        "umask": old_mask,
    }


if __name__ == "__main__":
    sys.exit(main())
