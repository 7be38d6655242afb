"""``stop``: end a run after a checkpoint, at once, or by force."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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
from core.commands.control import add_timeout, describe
from core.errors import UserError

if TYPE_CHECKING:
    from core.runs.record.state import RunState
    from core.runs.record.store import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_argument(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--now", action="store_true")
    how.add_argument("--force", action="store_true")
    add_timeout(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, or kill; wait until the run is over, and print its state."""
    from core.launch.launcher import kill
    from core.runs.record.store import way_on

    target = find_live_run(args.run, "stop")
    if args.force:
        _say_what_is_lost(target)
        state = kill(target, args.timeout)
    else:
        state = _ask(target, args.timeout, now=args.now)
    if args.json:
        emit(describe(target, "stop", state))
        return 0
    say(f"{target.id}: {describe_state(state)}")
    if state.state != "finished":
        say(way_on(target))
    return 0


def _say_what_is_lost(target: Run) -> None:
    from core.runs.record.store import complete_checkpoints

    state = target.state()
    saved = [int(path.name.removeprefix("step-")) for path in complete_checkpoints(target)]
    kept = f"what it did after step {saved[-1]} is lost" if saved else "it has saved nothing"
    note(f"{PROGRAM}: process {state.pid} of {target.id} is killed at step {state.step}; {kept}.")


def _ask(target: Run, timeout: float, *, now: bool) -> RunState:
    """Ask a run to stop by itself: the worker over its socket, and by a signal if it does not answer.

    Raises:
        UserError: If it does not stop within the time given.
    """
    from core.launch import launcher
    from core.runs.control.client import ControlClient

    try:
        with ControlClient(target, timeout=timeout) as client:
            client.request("stop", **({"now": True} if now else {}))
    except UserError as error:
        if not target.state().is_over:
            note(f"{PROGRAM}: {error.message} It gets a signal instead.")
            launcher.terminate_when_begun(target, timeout)
    try:
        return launcher.wait_until(target, lambda state: state.is_over, timeout)
    except UserError as error:
        raise UserError(error.message, f"'{PROGRAM} stop --force {target.id}' kills its process.") from error
