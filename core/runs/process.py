"""Process identity: a pid with its start time, since a pid alone is reused."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path


def start_identity(pid: int) -> str | None:
    """Start identity: a text that no other process with this pid will ever have; None if there is no process, or only
    its zombie.

    It is the boot's id with the process's start in clock ticks since boot (``/proc/PID/stat``, field 22), which no
    change of the wall clock moves.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = boot_id()
    except OSError:
        return None
    # The command name, in parentheses, may itself contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    return f"{boot}/{fields[19]}"


def boot_id() -> str:
    """Boot id of the kernel.

    Raises:
        OSError: If it cannot be read.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_same_process(pid: int | None, identity: str | None) -> bool:
    """Whether the process that was recorded as ``pid`` with ``identity`` is still alive."""
    return pid is not None and identity is not None and start_identity(pid) == identity


def own_identity() -> tuple[int, str | None]:
    """This process's pid and start identity."""
    return os.getpid(), start_identity(os.getpid())


def hostname() -> str:
    """Name of this machine, as recorded in ``state.json``."""
    return socket.gethostname()


def host_folder() -> str:
    """Name of this machine as that of a folder, for what machines that share a home do not share."""
    name = re.sub(r"[^\w.-]", "_", hostname(), flags=re.ASCII)[:100]
    return name if name.strip(".") else f"_{name}"
