"""Forced end of an unresponsive worker: SIGKILL, and the end recorded on its behalf."""

from __future__ import annotations

import dataclasses
import os
import time

from core.errors import UserError
from core.launch.launcher import reap, terminate
from core.runs.record.events import ControlEvent, StoppedEvent
from core.runs.record.files import append_events, try_lock
from core.runs.record.state import RunState
from core.runs.record.store import Run, complete_checkpoints, way_on


def kill(run: Run, timeout: float) -> RunState:
    """End an unresponsive worker by SIGKILL, and record on its behalf that it was stopped.

    Its progress since the last checkpoint is lost. This also ends a process that is suspended (SIGSTOP) or waits for a
    device.

    Args:
        run: The run.
        timeout: Seconds to wait for the process to end; a process that waits for a broken disk may never end.

    Returns:
        The state afterwards: ``stopped``, unless the worker ended by itself at that moment.

    Raises:
        UserError: As for :func:`core.launch.launcher.terminate`, or if the process is still there after the timeout.
    """
    terminate(run, force=True)
    deadline = time.monotonic() + timeout
    while (lock := try_lock(run)) is None or not run.state().is_over:
        if lock is not None:
            os.close(lock)
        if time.monotonic() >= deadline:
            raise UserError(
                f"The process of run {run.id} is still there {timeout:g} s after it was killed.",
                "It waits for a device or a disk that does not answer; only a restart of the machine may end it.",
            )
        time.sleep(0.05)
        reap()
    try:
        recorded = RunState.read(run.state_path)
        # A worker that recorded its own end and then hung keeps that end.
        if recorded is not None and run.state().state == "lost":
            _record_kill(run, recorded)
    finally:
        os.close(lock)
    return run.state()


def _record_kill(run: Run, recorded: RunState) -> None:
    """Record the end that a killed worker could not record."""
    step = recorded.step
    reason = f"stopped by SIGKILL after step {step}"
    found = complete_checkpoints(run)
    adapter = str((found[-1] / "adapter").relative_to(run.path)) if found else None
    result = "killed on request, without a checkpoint"
    append_events(
        run,
        ControlEvent(command="stop", sender="SIGKILL", result=result),
        StoppedEvent(reason=reason, step=step, adapter=adapter, hint=way_on(run)),
    )
    over = dataclasses.replace(recorded, state="stopped", reason=reason, socket=None, step_started=None)
    try:
        dataclasses.replace(over, updated=time.time()).write(run.state_path)
    except OSError as error:
        raise UserError(f"{run.state_path} cannot be written: {error.strerror}.", "Fix its permissions.") from error
