"""``pause``, ``resume``, ``checkpoint`` and ``stop``: one command to a live run, and what became of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from core.commands.common import (
    PROGRAM,
    add_json_flag,
    add_run_argument,
    describe_state,
    emit,
    find_live_run,
    note,
    say,
)
from core.errors import UserError

if TYPE_CHECKING:
    from core.runs.state import RunState
    from core.runs.store import Run

#: Seconds given to a run to reach the state that was asked for; an optimizer step of a large model takes a while.
DEFAULT_TIMEOUT = 120.0

_REACHED = {"pause": "paused", "resume": "training"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_argument(parser)
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=DEFAULT_TIMEOUT,
        help=f"how long to wait for the run to get there (default {DEFAULT_TIMEOUT:g}); it goes on after that",
    )
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Send the command, wait until it has had its effect, and print the state reached."""
    command: str = args.command
    target = find_live_run(args.run, command)
    _send(target, command, args.timeout)
    state = target.state() if command == "checkpoint" else _wait(target, command, args.timeout)
    result: dict[str, Any] = {
        "run": target.id,
        "command": command,
        "state": state.state,
        "step": state.step,
        "total_steps": state.total_steps,
    }
    if command == "checkpoint":
        result["checkpoint"] = _newest_checkpoint(target)
    if args.json:
        emit(result)
        return 0
    say(f"{target.id}: {describe_state(state)}")
    if command == "checkpoint":
        say(f"checkpoint: {target.path / result['checkpoint']}")
    elif command == "stop" and state.state != "finished":
        say(f"go on with it: {PROGRAM} continue {target.id}" if state.step else "it had not begun; start it again")
    return 0


def _newest_checkpoint(target: Run) -> str:
    """The checkpoint that has just been saved, relative to the run directory.

    Raises:
        UserError: If there is none, against what the worker has said.
    """
    from core.runs.launcher import complete_checkpoints

    complete = complete_checkpoints(target)
    if not complete:
        raise UserError(f"{target.checkpoints_path} holds no complete checkpoint.", f"Its log is {target.log_path}.")
    return str(complete[-1].relative_to(target.path))


def _send(target: Run, command: str, timeout: float) -> None:
    """Ask the worker over its socket; one that does not answer is at least told to stop by a signal."""
    from core.runs import launcher
    from core.runs.client import ControlClient

    try:
        with ControlClient(target, timeout=timeout) as client:
            client.request(command)
    except UserError as error:
        if command != "stop" or target.state().is_over:
            raise
        note(f"{PROGRAM}: {error.message} It gets a signal instead.")
        launcher.terminate(target)


def _wait(target: Run, command: str, timeout: float) -> RunState:
    """Wait for the effect of a command.

    Raises:
        UserError: If the run ends first, or does not get there in time.
    """
    from core.runs.launcher import wait_until

    def reached(state: RunState) -> bool:
        return state.is_over if command == "stop" else state.state == _REACHED[command]

    return wait_until(target, reached, timeout)
