"""``continue RUN``: continue an ended run from its last checkpoint, and follow it to its end."""

from __future__ import annotations

import argparse

from core.commands.common import add_json_flag, add_run_argument
from core.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_argument(parser)
    parser.add_argument("--checkpoints", metavar="DIR", type=user_path)
    parser.add_argument("--detach", action="store_true")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Continue; the exit code is that of the run: 0 finished, 3 stopped, 4 failed.

    Raises:
        UserError: If there is no such run, it cannot be continued, or its checkpoints are not in the directory named.
    """
    from core.commands.follow import Interrupts
    from core.commands.train import follow_to_end, report_detached
    from core.launch.launcher import continue_run
    from core.runs.record.store import confirm_checkpoints, find_run

    target = find_run(args.run)
    if args.checkpoints is not None:
        confirm_checkpoints(target, args.checkpoints)
    with Interrupts() as interrupts:
        continue_run(target)
        if args.detach:
            report_detached(target, as_json=args.json)
            return 0
        return follow_to_end(target, interrupts, as_json=args.json, skip_past=True)
