"""``pause``, ``resume``, ``park`` and ``checkpoint``: send one command to a live run and report its effect."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.commands.common import add_json_flag, add_run_argument, describe_state, emit, fields, find_live_run, say
from core.commands.parser import seconds
from core.errors import UserError

if TYPE_CHECKING:
    from core.runs.record.state import RunState
    from core.runs.record.store import Run

#: Seconds allowed for reaching the requested state; an optimizer step of a large model takes a while.
DEFAULT_TIMEOUT = 120.0

#: When a command has had its effect on the state of a run.
_REACHED: dict[str, Callable[[RunState], bool]] = {
    "pause": lambda state: state.state == "paused",
    "resume": lambda state: state.state == "training",
    "park": lambda state: bool(state.parked),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_argument(parser)
    add_timeout(parser)
    add_json_flag(parser)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add ``--timeout`` to a command."""
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=DEFAULT_TIMEOUT,
        help=f"how long to wait for the run to get there (default {DEFAULT_TIMEOUT:g}); it goes on after that",
    )


def run(args: argparse.Namespace) -> int:
    """Send the command, wait until it has had its effect, and print the state reached."""
    from core.launch.launcher import wait_until
    from core.runs.control.client import ControlClient

    command: str = args.command
    target = find_live_run(args.run, command)
    with ControlClient(target, timeout=args.timeout) as client:
        client.request(command)
    reached = _REACHED.get(command)
    state = wait_until(target, reached, args.timeout) if reached is not None else target.state()
    result = describe(target, command, state)
    if command == "checkpoint":
        result["checkpoint"] = _newest_checkpoint(target)
    if args.json:
        emit(result)
        return 0
    say(f"{target.id}: {describe_state(state)}")
    if command == "checkpoint":
        say(f"checkpoint: {target.path / result['checkpoint']}")
    return 0


def describe(target: Run, command: str, state: RunState) -> dict[str, Any]:
    """The result of a command, for ``--json``."""
    return {"run": target.id, "command": command, **fields(state, "state", "step", "total_steps", "parked")}


def _newest_checkpoint(target: Run) -> str:
    """The checkpoint that has just been saved, relative to the run directory.

    Raises:
        UserError: If there is none, although the worker has reported one.
    """
    from core.runs.record.store import complete_checkpoints

    complete = complete_checkpoints(target)
    if not complete:
        raise UserError(f"{target.checkpoints_path} holds no complete checkpoint.", f"Its log is {target.log_path}.")
    return str(complete[-1].relative_to(target.path))
