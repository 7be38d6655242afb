"""Holders of a device: the runs that have signed its lock file, told apart from those of the past by their processes.

A line of the file is a holder as JSON: the run's id, and the process that holds the lock for it. Lines are only added,
each in one write, until somebody has the device alone.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from core import paths
from core.runs.process import is_same_process, own_identity
from core.runs.store import Run
from core.small_files import parse_json
from core.text import one_line

#: Longest id of a run in a lock file, and how much of the file is read, from its end, in bytes.
_ID_LIMIT, _LIMIT = 300, 1 << 16


def sign(descriptor: int, run_id: str, *, is_first: bool = False) -> None:
    """Write who has a device, for the sentences of others; nothing where there is no room.

    Args:
        descriptor: Of the lock file.
        run_id: Who has it; this process holds the lock.
        is_first: Whether nobody else has it, so that whoever has signed before is of the past.
    """
    pid, identity = own_identity()
    name = run_id.encode("utf-8", errors="replace")[:_ID_LIMIT].decode("utf-8", errors="ignore")
    line = json.dumps({"run": name, "pid": pid, "pid_started": identity}).encode("ascii")
    with suppress(OSError):
        if is_first:
            os.ftruncate(descriptor, 0)
        # A line that a full disk has cut short is ended first.
        os.write(descriptor, b"\n" + line + b"\n")


def live_holders(descriptor: int, besides: str = "") -> tuple[str, ...]:
    """The runs that have signed a lock file and are on the device, in the order in which they came.

    Args:
        descriptor: Of the lock file.
        besides: Id of a run that is not meant.
    """
    try:
        size = os.fstat(descriptor).st_size
        lines = os.pread(descriptor, _LIMIT, max(size - _LIMIT, 0)).splitlines()
    except OSError:
        return ()
    found = (name for line in lines if (name := _live_run(line)) is not None)
    return tuple(name for name in dict.fromkeys(found) if name != besides)


def _live_run(line: bytes) -> str | None:
    """The run of a line; None where that is no holder, or one whose process is gone or has given the device back."""
    try:
        said: Any = parse_json(line)
        name, pid, identity = said["run"], said["pid"], said["pid_started"]
    except (ValueError, KeyError, TypeError):
        return None
    if type(pid) is not int or not isinstance(identity, str) or not is_same_process(pid, identity):
        return None
    if not isinstance(name, str) or name != one_line(name, _ID_LIMIT) or Path(name).name != name or name in ("", ".."):
        return None
    run = Run(paths.runs_dir() / name)
    # A rank's run may be on another machine, where its home is.
    state = run.state() if run.path.is_dir() else None
    return None if state is not None and (state.is_over or state.parked) else str(name)
