"""Run launcher: starts, continues and ends workers, detached processes that outlive this one."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from core.beneath import open_beneath
from core.config.schema import Config
from core.errors import UserError
from core.helper import describe_end, finding_core, start_detached
from core.redact import is_secret_name
from core.runs.control.devices import ALONE_VARIABLE
from core.runs.record.events import ControlEvent, StoppedEvent
from core.runs.record.state import RunState, hostname, in_words, send_signal
from core.runs.record.store import (
    LOCK_VARIABLE,
    Run,
    append_events,
    complete_checkpoints,
    create_run,
    refuse_unsafe_files,
    start_again,
    try_lock,
    way_on,
)
from core.small_files import open_regular
from core.text import one_line
from core.tracking.start import places, record_failure, start_tracker

#: Environment variables that a worker does not need, and that its libraries must not see.
_AGENT_VARIABLES = ("SSH_AUTH_SOCK", "SSH_AGENT_PID")
_LOG_HEADER = "== worker started "
_LOG_TAIL_BYTES = 64 << 10
#: Seconds that a worker may take to exit after it has recorded its end.
_EXIT_SECONDS = 10.0

_children: dict[Path, subprocess.Popen[bytes]] = {}
_trackers: list[subprocess.Popen[bytes]] = []
_children_guard = threading.Lock()


def start_run(config: Config, name: str) -> Run:
    """Create a run directory and start its worker.

    Args:
        config: The checked configuration, paths absolute.
        name: Subject of the run; its slug ends the run id.

    Raises:
        UserError: If the home cannot be written or no process can be started.
    """
    run = create_run(config, name)
    launch(run)
    return run


def launch(run: Run, *, resume: bool = False, alone: bool = False) -> int:
    """Start the worker of a run, detached: own session, no terminal, output to ``worker.log``.

    Args:
        run: A queued run.
        resume: Whether the worker continues from the last checkpoint.
        alone: Whether it waits for its device to be free of other runs.

    Returns:
        The worker's pid.

    Raises:
        UserError: If the run has a worker already, its directory has an unsafe file, or no process can be started; the
            run is then ``failed``.
    """
    lock = _lock_or_refuse(run)
    try:
        refuse_unsafe_files(run)
        return _spawn(run, resume=resume, lock=lock, alone=alone)
    finally:
        os.close(lock)


def continue_run(run: Run, *, alone: bool = False) -> None:
    """Continue an ended run (stopped, failed or lost) from its last checkpoint.

    Args:
        run: The run.
        alone: Whether it waits for its device to be free of other runs.

    Raises:
        UserError: If the run is live or finished, has no checkpoint, or its directory has an unsafe file; nothing is
            changed then.
    """
    lock = _lock_or_refuse(run)
    try:
        state = run.state()
        refuse_continuation(run, state)
        refuse_unsafe_files(run)
        queued = dataclasses.replace(
            state,
            state="queued",
            reason="",
            pid=None,
            pid_started=None,
            host=hostname(),
            updated=time.time(),
            socket=None,
            step_started=None,
            beat=None,
        )
        _write_state(run, queued)
        _spawn(run, resume=True, lock=lock, alone=alone)
    finally:
        os.close(lock)


def refuse_continuation(run: Run, state: RunState) -> None:
    """Refuse to continue a run that cannot be continued.

    Args:
        run: The run.
        state: Its inferred state.

    Raises:
        UserError: If the run is live or finished, or has no checkpoint.
    """
    if state.state == "finished":
        raise UserError(
            f"Run {run.id} is finished; there is nothing to continue.",
            f"Train it further, as a new run: localtune-tui continue {run.id} --further",
        )
    if not state.is_over:
        where = f" on {state.host}" if state.host and state.host != hostname() else ""
        raise UserError(
            f"Run {run.id} is {state.state}{where}; only an ended run can be continued.",
            f"Stop it first with 'localtune-tui stop {run.id}'.",
        )
    if not complete_checkpoints(run):
        raise UserError(f"Run {run.id} has no complete checkpoint to go on from.", f"To have one, {start_again(run)}.")


def wait_until(run: Run, predicate: Callable[[RunState], bool], timeout: float, *, interval: float = 0.05) -> RunState:
    """Wait until the state of a run satisfies a predicate.

    Args:
        run: The run.
        predicate: Condition on the inferred state.
        timeout: Seconds to wait at most.
        interval: Seconds between two checks.

    Returns:
        The first state that satisfies the predicate.

    Raises:
        UserError: If the run ends without satisfying it, with the reason, or the time is up.
    """
    deadline = time.monotonic() + timeout
    while True:
        reap()
        state = run.state()
        if predicate(state):
            return state
        if state.is_over:
            reason = failure_reason(run).rstrip(".")
            raise UserError(f"Run {run.id} {in_words(state.state)}: {reason}.", f"The whole log is {run.log_path}.")
        if time.monotonic() >= deadline:
            raise UserError(f"Run {run.id} is still {state.state} after {timeout:g} s.", f"Its log is {run.log_path}.")
        time.sleep(interval)


def reap() -> None:
    """Reap ended workers and trackers, so that none stays a zombie.

    A worker that ended before it wrote any state is recorded as failed, with the end of its log as the reason.
    """
    with _children_guard:
        ended = [(path, child) for path, child in _children.items() if child.poll() is not None]
        for path, _ in ended:
            del _children[path]
        _trackers[:] = [process for process in _trackers if process.poll() is None]
    for path, child in ended:
        run = Run(path)
        recorded = RunState.read(run.state_path)
        if recorded is not None and recorded.state == "queued" and recorded.pid is None:
            _record_failure(
                run, recorded, f"its process {describe_end(child.returncode)} before it began{_because(run)}"
            )


def failure_reason(run: Run) -> str:
    """Reason for the end of a run, in one line: as recorded, else the end of its log."""
    state = run.state()
    if state.state == "lost":
        return f"{state.reason or 'its process is gone'}{_because(run)}"
    if state.reason:
        return one_line(state.reason)
    lines = log_tail(run, 3)
    return one_line(" / ".join(lines)) if lines else f"it is {state.state}, and its log is empty"


def log_tail(run: Run, lines: int = 20) -> list[str]:
    """The last lines that the newest worker of a run printed, without blank lines; safe to show."""
    try:
        with open_regular(run.log_path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _LOG_TAIL_BYTES, 0))
            text = (file.read(_LOG_TAIL_BYTES) or b"").decode("utf-8", errors="replace")
    except OSError:
        return []
    newest = text.rpartition(_LOG_HEADER)
    if newest[1]:
        text = newest[2].partition("\n")[2]
    # A progress bar redraws its line with carriage returns; only the last state counts.
    kept = [line.rstrip().rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [one_line(line, 500) for line in kept if line][-lines:]


def terminate(run: Run, *, force: bool = False) -> bool:
    """End a worker by signal, if its socket does not answer; on SIGTERM it saves a checkpoint first.

    The signal goes only to the recorded process, identified by pid and start time.

    Args:
        run: The run.
        force: Send SIGKILL, and save nothing.

    Returns:
        False if the process is gone.

    Raises:
        UserError: If the worker runs on another machine or belongs to another user.
    """
    state = RunState.read(run.state_path)
    if state is None or state.pid is None:
        return False
    if state.host and state.host != hostname():
        raise UserError(f"Run {run.id} runs on {state.host}, not on this machine.", f"Stop it on {state.host}.")
    try:
        return send_signal(state.pid, state.pid_started, signal.SIGKILL if force else signal.SIGTERM)
    except PermissionError as error:
        raise UserError(f"Process {state.pid} belongs to another user.", "Stop it as that user.") from error
    except OSError as error:
        raise UserError(f"Process {state.pid} cannot be signaled: {error.strerror}.", "End it by hand.") from error


def terminate_when_begun(run: Run, timeout: float) -> bool:
    """End a worker by SIGTERM as soon as it has recorded its pid, which takes a moment after its start.

    Args:
        run: The run.
        timeout: Seconds to wait for that at most.

    Returns:
        False if there was no process to end.

    Raises:
        UserError: As for :func:`terminate`.
    """
    deadline = time.monotonic() + timeout
    while not terminate(run):
        reap()
        if run.state().is_over or time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _lock_or_refuse(run: Run) -> int:
    lock = try_lock(run)
    deadline = time.monotonic() + _EXIT_SECONDS
    while lock is None and run.state().is_over and time.monotonic() < deadline:
        # Its worker has recorded its end and is about to exit.
        time.sleep(0.05)
        lock = try_lock(run)
    if lock is None:
        raise UserError(f"Run {run.id} already has a worker.", f"Watch it with 'localtune-tui watch {run.id}'.")
    return lock


def _spawn(run: Run, *, resume: bool, lock: int, alone: bool) -> int:
    try:
        with _open_log(run, resume) as log:
            environment = worker_environment() | {LOCK_VARIABLE: str(lock), ALONE_VARIABLE: "1" if alone else ""}
            command = worker_command(run, resume=resume)
            child = start_detached(command, log=log, cwd=run.path, environment=environment, pass_fds=(lock,))
    except OSError as error:
        reason = f"its process could not be started: {error.strerror}"
        recorded = RunState.read(run.state_path) or RunState(state="queued")
        _record_failure(run, recorded, reason)
        raise UserError(f"Run {run.id}: {reason}.", "'localtune-tui doctor' looks for the cause.") from error
    with _children_guard:
        _children[run.path] = child
    start_trackers(run)
    return child.pid


def start_trackers(run: Run) -> None:
    """Start the trackers in the run's configuration, each in its own process.

    An error is recorded in the run's ``tracking`` directory, and never delays the run.
    """
    try:
        asked = list(places(run, run.config()))
    except UserError:
        # The worker reports the error in the configuration.
        return
    for place in asked:
        try:
            process = start_tracker(place, worker_environment())
        except (OSError, UserError) as error:
            with suppress(OSError):
                record_failure(place, f"its process could not be started: {error}")
            continue
        with _children_guard:
            _trackers.append(process)


@contextmanager
def _open_log(run: Run, resume: bool) -> Iterator[int]:
    descriptor = open_beneath(run.path, run.log_path.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        moment = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.write(descriptor, f"{_LOG_HEADER}{moment}{' to resume' if resume else ''}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)


def worker_command(run: Run, *, resume: bool = False) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "core.worker", str(run.path), *(["--resume"] if resume else [])]


def worker_environment() -> dict[str, str]:
    """Environment of a worker: without secrets, as a worker is offline, and with ``core`` importable."""
    environment = {
        name: value for name, value in os.environ.items() if not is_secret_name(name) and name not in _AGENT_VARIABLES
    }
    return finding_core(environment) | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


def _write_state(run: Run, state: RunState) -> None:
    try:
        state.write(run.state_path)
    except OSError as error:
        raise UserError(
            f"{run.state_path} cannot be written: {error.strerror}.", "Make room or fix its permissions."
        ) from error


def _record_failure(run: Run, recorded: RunState, reason: str) -> None:
    _write_state(run, dataclasses.replace(recorded, state="failed", reason=reason, updated=time.time()))


def _because(run: Run) -> str:
    lines = log_tail(run, 1)
    return f" ({lines[0]})" if lines else ""


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
        UserError: As for :func:`terminate`, or if the process is still there after the timeout.
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
    _write_state(run, dataclasses.replace(over, updated=time.time()))
