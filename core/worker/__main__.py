"""The training process: ``python -m core.worker RUN [--resume]``.

It is started detached, owns its run directory, and exits with 0 if finished, 3 if stopped, 4 if failed. A run that
gives its device back continues as another program in the same process (``--parked``), which becomes the training again.
In a run of several processes this one is the supervisor: it starts the others by the same command line, with their
ranks in the environment (:mod:`core.worker.distributed.rendezvous`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from core.config.derived import refusal_of_machines
from core.config.schema import Config
from core.errors import UserError
from core.notify import Notice, notify
from core.runs.control.devices import Hold
from core.runs.record.events import ControlEvent, FailedEvent, FinishedEvent, StoppedEvent
from core.runs.record.sentences import sender
from core.runs.record.state import EXIT_CODES, EXIT_REFUSED, PARKED_BY_HAND, RunState, ranks_path
from core.runs.record.store import (
    LOCK_VARIABLE,
    Run,
    complete_checkpoints,
    hold_worker_lock,
    refuse_unsafe_files,
    way_on,
)
from core.worker.distributed.rendezvous import Meeting, RankLostError, read_meeting
from core.worker.follower import follow_first, meet, tell_ranks
from core.worker.parked import parked_run, watch_claims
from core.worker.process import environment
from core.worker.process.control import Controls, ControlServer, ParkRequested, StopRequested, install_signals
from core.worker.process.devices import device_failure, hold_devices, shared_device
from core.worker.process.log import log, log_exception, redact_streams
from core.worker.process.recorder import Recorder
from core.worker.process.reports import Reports, report_to_supervisor
from core.worker.progress.health import NotFiniteError
from core.worker.supervise.supervisor import supervisor_of
from core.worker.supervise.verdict import EXIT_CRASHED, EXIT_LOST

#: Standard input, output and error: descriptors that survive an exec.
_STANDARD = 3


def main(argv: list[str] | None = None) -> int:
    """Do a run from its directory; returns the exit code."""
    parser = argparse.ArgumentParser(prog="core.worker", description="Carries out one run.")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--resume", action="store_true", help="go on from the newest valid checkpoint")
    parser.add_argument("--paused", action="store_true", help="begin with a pause")
    parser.add_argument("--parked", metavar="CAUSE", default="", help="wait without the device until it is free again")
    parser.add_argument("--needs", metavar="BYTES", type=int, default=0, help="memory that a parked run has to find")
    args = parser.parse_args(argv)
    started_with = dict(os.environ)
    redact_streams()
    environment.prepare()
    os.umask(0o077)
    run = Run(args.run.absolute())
    reports = report_to_supervisor()
    try:
        meeting = read_meeting(os.environ)
        lock = hold_worker_lock(run) if meeting is None or meeting.rank == 0 or reports.supervisor is not None else -1
    except UserError as error:
        log(f"error: {error}")
        return EXIT_CODES["failed"]
    try:
        # Libraries open files by name and would follow any link.
        refuse_unsafe_files(run)
    except UserError as error:
        log(f"error: {error}")
        if lock >= 0 and reports.supervisor is None:
            _record_refusal(run, error)
        return EXIT_CODES["failed"]
    if meeting is None:
        # Left by an earlier start with several processes.
        with contextlib.suppress(OSError):
            ranks_path(run.path).unlink(missing_ok=True)
    if meeting is not None and meeting.rank > 0:
        return follow_first(run, meeting, reports, resume=args.resume)
    paused = ["--paused"] if args.paused else []
    begins = meeting is None and not args.parked
    try:
        following: int | list[str]
        held = hold_devices(run) if begins else Hold()
        if isinstance(held, str):
            # It waits like a parked run: it takes commands and has loaded nothing.
            following = ["--parked", held, *paused]
        elif begins and (supervisor := supervisor_of(run, lock, started_with, held)) is not None:
            following = supervisor.supervise([*(["--resume"] if args.resume else []), *paused])
        else:
            following = _worker(run, args, meeting, reports, held.beside)
        if isinstance(following, int):
            return following
        if reports.supervisor is not None:
            reports.tell(following=following)
            return 0
        if meeting is not None and "--parked" not in following:
            # The other processes ended when the device was given back; whatever started them must start all of them
            # again.
            log("The device is free again: the processes of the run are to be started anew, with --resume.")
            return EXIT_LOST
        _become([str(run.path), *following], lock, started_with)
    finally:
        os.close(lock)


def _record_refusal(run: Run, error: UserError) -> None:
    """Record the end of a run that never began. The state file is replaced by name, and nothing else is touched."""
    recorded = RunState.read(run.state_path) or RunState(state="queued")
    with contextlib.suppress(OSError):
        replace(recorded, state="failed", reason=error.message, updated=time.time()).write(run.state_path)


def _worker(
    run: Run, args: argparse.Namespace, meeting: Meeting | None, reports: Reports, beside: Sequence[str]
) -> int | list[str]:
    """Be the worker of a run, rank 0 if there are several processes. Returns the exit code, or the options of the
    worker it continues as. ``beside`` names other runs on its device."""
    controls = Controls()
    install_signals(controls)
    try:
        recorder = Recorder(
            run,
            resume=args.resume or bool(args.parked),
            vanished=lambda: controls.request_stop("the removal of its directory", now=True),
            pending=lambda: controls.pending,
            changes=controls.changes,
            parked=args.parked,
            owner=reports.supervisor,
        )
    except OSError as error:
        log(f"error: {run.events_path} cannot be written: {error.strerror or error}.")
        return EXIT_CODES["failed"]
    if beside:
        notice = shared_device(beside)
        recorder.warn(notice.code, notice.message, notice.hint)
    server: ControlServer | None = None
    try:
        server = ControlServer(run.socket_path, controls, lambda: _status(recorder))
        recorder.update(socket=str(server.path))
        config = run.config()
        if args.parked:
            asked_by = parked_run(run, config, recorder, controls, args.parked, args.needs).wait()
            return _go_on(recorder, controls, server, asked_by, paused=args.paused)
        final: FinishedEvent = _train(config, recorder, controls, args, meeting, reports)
        state, reason = "finished", final.reason
    except ParkRequested as request:
        return _park(recorder, controls, server, request)
    except StopRequested as request:
        step, adapter = recorder.state.step, _newest_adapter(run)
        state, reason = "stopped", f"stopped {sender(request.sender)} after step {step}"
        result = "at once, without a checkpoint" if request.now else "ok"
        recorder.event(ControlEvent(command="stop", sender=request.sender, result=result))
        final = StoppedEvent(reason=reason, step=step, adapter=adapter, hint=way_on(run))
    except UserError as error:
        log(f"error: {error}")
        state, reason = "failed", error.message
        adapter = None if isinstance(error, NotFiniteError) and error.good is None else _newest_adapter(run)
        final = FailedEvent(reason=reason, step=recorder.state.step, adapter=adapter, hint=error.hint)
    except RankLostError as error:
        # The supervisor starts new processes, or records the end of the run.
        log(f"error: another process of the run does not answer: {error}")
        reports.tell(error=str(error))
        return EXIT_LOST
    except BaseException as error:
        log_exception()
        final = _unforeseen(recorder, error)
        if reports.supervisor is not None:
            reports.tell(error=final.reason)
            return EXIT_CRASHED
        state, reason = "failed", final.reason
    controls.close()
    if server is not None:
        server.close()
    recorder.close(state, reason, final)
    refused = f" Its result is refused by eval.gate: {final.refused}." if final.refused else ""
    notify(Notice(state, f"{reason}.{refused}" if refused else reason, run.id))
    return EXIT_REFUSED if final.refused else EXIT_CODES[state]


def _train(
    config: Config,
    recorder: Recorder,
    controls: Controls,
    args: argparse.Namespace,
    meeting: Meeting | None,
    reports: Reports,
) -> FinishedEvent:
    """Import the libraries, meet the other processes of the run, and train."""
    run = recorder.run
    recorder.phase("importing")
    watch_claims(config.parking, controls, lambda: recorder.device)
    ranks = None
    if meeting is not None:
        ranks = meet(run, config, meeting, reports)
        tell_ranks(run, config, recorder, ranks.members, is_supervised=reports.supervisor is not None)
    elif (refusal := refusal_of_machines(config)) is not None:
        raise UserError(*refusal)
    elif config.hardware.device != "cpu":
        environment.choose_card(config)
    from core.worker.libraries import import_libraries

    import_libraries()
    from core.worker.process.openmp import SpinControl
    from core.worker.train import train

    SpinControl().start()
    return train(config, recorder, controls, resume=args.resume, paused=args.paused, ranks=ranks)


def _unforeseen(recorder: Recorder, error: BaseException) -> FailedEvent:
    """The failure event for an unexpected error, of the GPU or of the program."""
    run = recorder.run
    step, adapter = recorder.state.step, _newest_adapter(run)
    if (failure := device_failure(error, step, recorder.device)) is not None:
        hint = f"{failure.hint} {way_on(run)}"
        return FailedEvent(reason=failure.message, step=step, adapter=adapter, hint=hint)
    first = (str(error).splitlines() or [""])[0]
    reason = f"An error that should not happen: {type(error).__name__}: {first}"
    hint = f"The whole of it is in {run.log_path}; please report it."
    return FailedEvent(reason=reason, step=step, adapter=adapter, hint=hint)


def _park(recorder: Recorder, controls: Controls, server: ControlServer | None, request: ParkRequested) -> list[str]:
    """Leave the device; returns the options of the worker that waits for it."""
    cause = request.cause or PARKED_BY_HAND
    if request.cause:
        message = f"The device is given back: {request.cause}."
        recorder.notice("info", "parked", message, "The run goes on by itself when that is over.")
    recorder.event(ControlEvent(command="park", sender=request.sender, result="ok"))
    paused = request.paused or "pause" in controls.pending
    controls.close("The run is being parked.", "Ask again in a moment.", met=("pause",))
    if server is not None:
        server.close()
    recorder.hand_over(state="paused", reason="", parked=cause)
    needs = ["--needs", str(recorder.device_peak)]
    return ["--parked", cause, *needs, *(["--paused"] if paused else [])]


def _go_on(recorder: Recorder, controls: Controls, server: ControlServer, asked_by: str, *, paused: bool) -> list[str]:
    """Take the device back; returns the options of the worker that trains."""
    recorder.event(ControlEvent(command="resume", sender=asked_by, result="ok"))
    controls.close("The run is about to go on.", "Ask again in a moment.")
    server.close()
    recorder.hand_over(state="starting", parked="")
    # Without a checkpoint the run starts over.
    resume = ["--resume"] if complete_checkpoints(recorder.run) else []
    return [*resume, *(["--paused"] if paused and asked_by != "socket" else [])]


def _become(arguments: Sequence[str], lock: int, environment: Mapping[str, str]) -> NoReturn:
    """Replace this process with a new ``python -m core.worker``. Pid, start time and lock stay, so watchers see the
    same worker. All memory is freed, including the driver's context, which no library can free while its process lives.

    Args:
        arguments: Arguments of the new worker.
        lock: Descriptor of the worker lock, which the new worker adopts.
        environment: Environment at the start of this program, before libraries were configured through it.

    Raises:
        OSError: If the program cannot be started.
    """
    log(f"== worker started anew: {' '.join(arguments[1:])}")
    sys.stdout.flush()
    sys.stderr.flush()
    # A driver may have opened its device as inheritable, and with it the memory.
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed
            if int(name) >= _STANDARD:
                os.set_inheritable(int(name), False)
    os.set_inheritable(lock, True)
    command = [sys.executable, "-m", "core.worker", *arguments]
    os.execve(  # noqa: S606 - a list of our own arguments
        sys.executable, command, {**environment, LOCK_VARIABLE: str(lock)}
    )


def _status(recorder: Recorder) -> dict[str, object]:
    state = recorder.state
    return {"state": state.state, "step": state.step, "total_steps": state.total_steps, "pid": state.pid}


def _newest_adapter(run: Run) -> str | None:
    """Adapter of the newest checkpoint, relative to the run directory."""
    found = sorted(run.checkpoints_path.glob("step-*/adapter/adapter_model.safetensors"))
    return str(found[-1].parent.relative_to(run.path)) if found else None


if __name__ == "__main__":
    sys.exit(main())
