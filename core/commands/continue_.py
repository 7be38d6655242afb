"""``continue RUN``: continue an ended run from its last checkpoint, or train its result further as a new run, and
follow that to its end."""

from __future__ import annotations

import argparse

from core.commands.common import add_json_flag, add_run_argument, add_set
from core.commands.parser import ArgumentParser
from core.commands.starting import add_consent
from core.errors import UserError
from core.paths import user_path


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_argument(parser)
    parser.add_argument("--checkpoints", metavar="DIR", type=user_path)
    parser.add_argument("--further", action="store_true")
    parser.add_argument("--corrections", action="store_true")
    add_set(parser, "with --further or --corrections: set an option of the new run; may be repeated")
    parser.add_argument("--detach", action="store_true")
    add_consent(parser)
    for flag in ("--further", "--corrections"):
        parser.add_conflict("--checkpoints", flag, "a new run writes its own.")
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

    if args.further or args.corrections:
        return train_further(args)
    if args.set:
        raise UserError("--set goes with --further: a run is continued as it began.", "Add --further for a new run.")
    target = find_run(args.run)
    if args.checkpoints is not None:
        confirm_checkpoints(target, args.checkpoints)
    with Interrupts() as interrupts:
        continue_run(target)
        if args.detach:
            report_detached(target, as_json=args.json)
            return 0
        return follow_to_end(target, interrupts, as_json=args.json, skip_past=True)


def train_further(args: argparse.Namespace) -> int:
    """Train the result of a run further, on its rows or on the corrections of its chat, as a new run; returns its exit
    code.

    Raises:
        UserError: If there is no such run or result, or the configuration is refused.
    """
    from core.chat.corrections import train_on_corrections
    from core.commands.configuration import check_config
    from core.commands.train import check_data, check_model, start
    from core.runs.catalog.earlier import train_further as further
    from core.runs.catalog.trained import find_run_at
    from core.runs.record.sentences import slug_of

    target, step = find_run_at(args.run)
    document = train_on_corrections(target, step) if args.corrections else further(target, step)
    document.apply(args.set)
    config = check_config(document)
    check_model(config)
    check_data(config)
    return start(config, slug_of(target.id), args)
