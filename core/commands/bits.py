"""``bits CONFIG``: the cost of 4-bit weights on a configuration's rows, layer by layer, before a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.commands.common import add_config, add_json_flag, emit, say
from core.errors import UserError

#: Rows that ``--rows`` takes.
MOST_ROWS = 1024
#: Cells of the longest bar.
_BAR = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from core.quantization.result import ROWS

    add_config(parser)
    parser.add_argument(
        "--rows",
        metavar="N",
        type=int,
        default=ROWS,
        help=f"rows that are measured at most, held-out ones where there are any (default: {ROWS})",
    )
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print the result with a table of layers; the exit code is 0 for any result."""
    from core.commands.configuration import read_config
    from core.commands.live_line import ProgressLine
    from core.jobs.job import JobProgress
    from core.quantization.job import measure
    from core.quantization.result import HEAD, TABLE, advice, facts, layer_lines, sentence

    if not 1 <= args.rows <= MOST_ROWS:
        raise UserError(f"--rows {args.rows} is not a number of rows from 1 to {MOST_ROWS}.", "Write it as 16.")
    config = read_config(Path(args.config), args.set, is_for_here=False)
    with ProgressLine("The measurement was broken off.") as line:
        cost = measure(config, lambda *at: line.follow(JobProgress(*at)), rows=args.rows)
    if args.json:
        emit(cost.to_dict())
        return 0
    say(sentence(cost), "", *facts(cost), "", TABLE, HEAD.rstrip())
    say(*(f"{layer.text}  {'#' * round(_BAR * layer.share)}".rstrip() for layer in layer_lines(cost)))
    if todo := advice(cost):
        say("", todo)
    return 0
