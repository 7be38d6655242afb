"""``slurm CONFIG``: a file for Slurm's ``sbatch`` that trains as a configuration says, on one node or several."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands.common import BOTH_PRINTED, add_config, add_json_flag, emit, note, put, say
from core.commands.parser import ArgumentParser, whole_number

if TYPE_CHECKING:
    from core.config.schema import Config


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add_config(parser)
    parser.add_argument("--nodes", metavar="N", type=whole_number, default=1, help="machines (default: 1)")
    parser.add_argument(
        "--cards-per-node",
        metavar="N",
        type=whole_number,
        help="cards on each, a process for each (default: distributed.processes, or the cards that are named)",
    )
    parser.add_argument(
        "--time", default="", metavar="LIMIT", help="time limit as Slurm writes it: 12:00:00, 2-00:00:00"
    )
    parser.add_argument("--partition", default="", metavar="NAME", help="partition (default: the cluster's)")
    parser.add_argument("--account", default="", metavar="NAME", help="account (default: the user's)")
    parser.add_argument("--name", help="subject of the run (default: the file's name)")
    parser.add_argument("--output", metavar="FILE", help="file to write, - for standard output (default: NAME.sbatch)")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    add_json_flag(parser)
    parser.add_conflict("--output -", "--json", BOTH_PRINTED)


def run(args: argparse.Namespace) -> int:
    """Write the file, and print how it is handed in."""
    from core.commands.configuration import read_config
    from core.commands.train import check_data, check_model
    from core.launch.slurm import SlurmJob
    from core.runs.store import make_slug

    path = Path(args.config).absolute()
    config = read_config(path, args.set, is_for_here=False)
    _refuse_hosts(config)
    check_model(config)
    check_data(config)
    name = make_slug(args.name or path.stem)
    processes = args.cards_per_node or _processes(config)
    job = SlurmJob(
        config=path,
        assignments=args.set,
        name=name,
        nodes=args.nodes,
        processes=processes,
        cards=0 if config.hardware.device == "cpu" else processes,
        restarts=config.distributed.restarts,
        time=args.time,
        partition=args.partition,
        account=args.account,
    )
    if args.output == "-":
        put(job.batch_file())
        return 0
    out = _write(Path(os.path.expanduser(args.output or f"{name}.sbatch")), job.batch_file(), force=args.force)
    if args.json:
        emit({"file": str(out), "nodes": job.nodes, "processes": job.nodes * job.processes, "cards": job.cards})
        return 0
    say(str(out))
    note(f"{_count(job.nodes, 'node')}, {_count(job.nodes * job.processes, 'process')}; hand it in with: sbatch {out}")
    return 0


def _refuse_hosts(config: Config) -> None:
    from core.errors import UserError

    if config.distributed.other_hosts:
        raise UserError(
            "distributed.hosts names machines, and Slurm chooses them itself.",
            "Leave it out; --set distributed.hosts= does so for this file.",
        )


def _processes(config: Config) -> int:
    named = [name for name in config.distributed.named_gpus if name != "all"]
    return config.distributed.processes or len(named) or 1


def _write(out: Path, text: str, *, force: bool) -> Path:
    """Write the file; returns its path.

    Raises:
        UserError: If it exists and may not be replaced.
    """
    from core.atomic import write_atomic
    from core.errors import UserError

    if not force and os.path.lexists(out):
        raise UserError(f"{out} exists already.", "Choose another name with --output, or replace it with --force.")
    write_atomic(out, text, mode=0o755)
    return out


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
