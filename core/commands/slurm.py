"""``slurm CONFIG``: the former name of ``train CONFIG --slurm FILE``."""

from __future__ import annotations

import argparse

from core.commands.common import BOTH_PRINTED, add_config, add_json_flag
from core.commands.parser import ArgumentParser, whole_number
from core.commands.train import add_job_options, write_batch_file


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add_config(parser)
    parser.add_argument("--cards-per-node", metavar="N", type=whole_number)
    parser.add_argument("--name")
    parser.add_argument("--output", metavar="FILE")
    add_job_options(parser)
    add_json_flag(parser)
    parser.add_conflict("--output -", "--json", BOTH_PRINTED)


def run(args: argparse.Namespace) -> int:
    """Write the file, and print how it is handed in."""
    return write_batch_file(args, args.output, args.cards_per_node)
