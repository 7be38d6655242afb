"""Fate of an entry's run, by its files and processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from core import paths
from core.errors import UserError
from core.queue.entry import QueueEntry
from core.runs.record.state import (
    ACTIVE_STATES,
    PARKED_BY_HAND,
    RunState,
    boot_id,
    hostname,
    infer_state,
    is_same_process,
)
from core.runs.record.store import Run, list_runs, try_lock

FateKind = Literal["absent", "unstarted", "live", "ended", "rebooted"]


@dataclass(frozen=True)
class Fate:
    """The state of an entry's run, as the queue's runner finds it.

    Args:
        kind: ``absent`` without a directory; ``unstarted`` before its first process; ``live``; ``ended``, also if its
            process is gone; ``rebooted`` if the machine was rebooted while it was live.
        state: Its inferred state; None if it is absent.
    """

    kind: FateKind
    state: RunState | None = None


def run_of(entry: QueueEntry) -> Run:
    """The run of an entry that has one.

    Raises:
        ValueError: If it has none yet.
    """
    if entry.run is None:
        raise ValueError(f"entry {entry.id} has no run")
    return Run(paths.runs_dir() / entry.run)


def find_fate(run: Run) -> Fate:
    """Find the fate of a run; its lock is checked only if no process is recorded."""
    if not run.config_path.is_file():
        return Fate("absent")
    recorded, state = RunState.read(run.state_path), run.state()
    if recorded is None:
        return Fate("ended", state)
    if recorded.pid is None and recorded.state in ACTIVE_STATES:
        return Fate("live" if is_locked(run) else "unstarted", state)
    if not state.is_over:
        return Fate("live", state)
    if is_same_process(recorded.pid, recorded.pid_started):
        # It has recorded its end, and is about to free its memory.
        return Fate("live", state)
    if state.state == "lost" and _is_of_earlier_boot(recorded):
        return Fate("rebooted", state)
    return Fate("ended", state)


def is_locked(run: Run) -> bool:
    """True if a worker, or a launcher about to start one, holds the run's lock.

    Raises:
        UserError: If the lock file cannot be made.
    """
    descriptor = try_lock(run)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _is_of_earlier_boot(recorded: RunState) -> bool:
    if recorded.pid_started is None or recorded.host not in ("", hostname()):
        return False
    try:
        return recorded.pid_started.partition("/")[0] != boot_id()
    except OSError:
        return False


def live_run(besides: str | None = None) -> Run | None:
    """A run of this home that is live on this machine and has its device, or will take it; None without one.

    A run that was parked by hand does not count: only a person brings it back.

    Args:
        besides: Id of a run to leave out.
    """
    for run in list_runs():
        if run.id == besides:
            continue
        recorded = RunState.read(run.state_path)
        if recorded is None or recorded.state not in ACTIVE_STATES or recorded.host not in ("", hostname()):
            continue
        if recorded.parked != PARKED_BY_HAND and not infer_state(recorded).is_over:
            return run
    return None


def continuable(run: Run) -> bool:
    """True if an ended run can be continued from a checkpoint."""
    from core.launch.launcher import refuse_continuation

    try:
        refuse_continuation(run, run.state())
    except UserError:
        return False
    return True
