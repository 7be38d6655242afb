"""``set``: change options of a live run."""

from __future__ import annotations

import argparse
from typing import Any

from core.commands.common import add_json_flag, add_run_argument, emit, find_live_run, say
from core.commands.control import add_timeout
from core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_argument(parser)
    parser.add_argument("changes", metavar="KEY=VALUE", nargs="+")
    add_timeout(parser)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Send the changes, and print the values from the next step on."""
    from core.runs.control.client import ControlClient

    changes: dict[str, Any] = {}
    for text in args.changes:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UserError(f"{text!r} is no change.", "Write it as train.learning_rate=1e-4.")
        changes[name.strip()] = None if value.strip() == "none" else value.strip()
    target = find_live_run(args.run, "set")
    with ControlClient(target, timeout=args.timeout) as client:
        answer = client.request("set", **changes)
    holding = {name: answer.get(name.replace(".", "_")) for name in changes}
    if args.json:
        emit({"run": target.id, "command": "set", "step": answer.get("step"), "set": holding})
        return 0
    for name, value in holding.items():
        say(f"{target.id}: {name} = {'none' if value is None else value} after step {answer.get('step')}")
    return 0
