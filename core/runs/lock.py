"""Worker lock: one worker per run, by a lock on ``worker.lock`` that lives exactly as long as the worker does.

The launcher takes the lock, and the worker inherits the open descriptor, so there is no moment between the two at which
a second launcher could get in. The kernel releases it when the worker ends, however it ends.
"""

from __future__ import annotations

import os

from core.errors import UserError
from core.lock_file import try_lock_file
from core.runs.store import Run

#: Environment variable with the inherited descriptor.
LOCK_VARIABLE = "LOCALTUNE_WORKER_LOCK"


def try_lock(run: Run) -> int | None:
    """Try to take the run's lock.

    Returns:
        The descriptor that holds it (close it to release), or None if another process has it. On a file system without
        locks a descriptor is returned nevertheless.

    Raises:
        UserError: If the lock file cannot be made or locked.
    """
    return try_lock_file(run.path / "worker.lock", needs_locks=False)


def hold_worker_lock(run: Run) -> int:
    """Adopt the inherited lock, or take it if started by hand; called by the worker before anything else.

    Returns:
        The descriptor, to be kept open for the life of the process; the worker's own children do not get it.

    Raises:
        UserError: If another worker has the lock.
    """
    inherited = os.environ.pop(LOCK_VARIABLE, "")
    if inherited.isascii() and inherited.isdigit() and _is_lock_of(run, int(inherited)):
        os.set_inheritable(int(inherited), False)
        return int(inherited)
    descriptor = try_lock(run)
    if descriptor is None:
        raise UserError(f"Run {run.id} already has a worker.", f"Watch it with 'localtune-tui watch {run.id}'.")
    return descriptor


def _is_lock_of(run: Run, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(run.path / "worker.lock"))
    except (OSError, OverflowError):
        return False
