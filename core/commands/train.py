"""``train CONFIG``: check a configuration, start a detached run, and follow it to its end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from core.commands.common import (
    BOTH_PRINTED,
    EXIT_USAGE,
    PROGRAM,
    add_config,
    add_json_flag,
    emit,
    note,
    put,
    say,
    write_file,
)
from core.commands.parser import ArgumentParser, whole_number
from core.commands.starting import add_consent, starts_all_the_same, unmet_now
from core.errors import UserError

if TYPE_CHECKING:
    from core.commands.follow import Interrupts
    from core.config.choices import RefusalCode
    from core.config.schema import Config
    from core.data.formats.detect import Detection
    from core.data.registries.source import DataSource
    from core.runs.record.store import Run


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_options(parser)
    parser.add_argument("--processes", metavar="N", type=int)
    parser.add_argument("--name")
    parser.add_argument("--no-start", action="store_true")
    parser.add_argument("--detach", action="store_true")
    add_consent(parser)
    parser.add_argument("--slurm", metavar="FILE")
    add_job_options(parser.add_argument_group("with --slurm"))
    parser.add_conflict("--detach", "--no-start", "a run that is not started does not train.")
    for flag in ("--detach", "--no-start"):
        parser.add_conflict("--slurm", flag, "Slurm starts the run.")
    parser.add_conflict("--slurm -", "--json", BOTH_PRINTED)
    add_json_flag(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Declare the configuration of a run, and the additions to it for this run."""
    from core.config.choices import RefusalCode

    add_config(parser)
    parser.add_argument(
        "--allow",
        metavar="CODE",
        action="append",
        default=[],
        choices=get_args(RefusalCode),
        help=f"go on where the check of the data refuses: {', '.join(get_args(RefusalCode))}; may be repeated",
    )
    parser.add_argument("--preset", metavar="NAME")


def add_job_options(parser: argparse._ActionsContainer) -> None:
    """Declare the options of a batch file."""
    parser.add_argument("--nodes", metavar="N", type=whole_number, default=1)
    parser.add_argument("--time", default="", metavar="LIMIT")
    parser.add_argument("--partition", default="", metavar="NAME")
    parser.add_argument("--account", default="", metavar="NAME")
    parser.add_argument("--force", action="store_true")


def read_run_config(args: argparse.Namespace, more: Sequence[str] = ()) -> Config:
    """The configuration by the arguments of :func:`add_run_options`.

    Args:
        args: The arguments.
        more: Further assignments, ``section.key=value``.

    Raises:
        UserError: If it is invalid, there is no such model, or the data cannot be used.
    """
    from core.commands.configuration import read_config

    config = read_config(Path(args.config), [*args.set, *more], args.preset)
    if args.allow:
        config = allow(config, args.allow)
    check_model(config)
    check_data(config)
    return config


def run(args: argparse.Namespace) -> int:
    """Train; the exit code is that of the run: 0 finished, 3 stopped, 4 failed, 5 refused by ``eval.gate``; 2 if a
    deadline or an energy cannot be met and the user does not agree to that."""
    if args.slurm is not None:
        more = [*(["--preset", args.preset] if args.preset else []), *(f"--allow={code}" for code in args.allow)]
        return write_batch_file(args, args.slurm, args.processes, *more)
    _refuse_job_options(args)
    several = [] if args.processes is None else [f"distributed.processes={args.processes}"]
    return start(read_run_config(args, several), args.name or Path(args.config).stem, args)


def start(config: Config, name: str, args: argparse.Namespace) -> int:
    """Start a run by the arguments ``--detach``, ``--yes``, ``--json`` and, if there is one, ``--no-start``.

    Args:
        config: The checked configuration.
        name: Subject of the run.
        args: The arguments.

    Returns:
        The exit code of the run, as in :func:`run`.
    """
    from core.commands.follow import Interrupts
    from core.commands.live_line import busy
    from core.launch.launcher import start_run

    with busy("estimating how long the run takes"):
        wishes = unmet_now(config)
    if not starts_all_the_same(wishes, yes=args.yes):
        return EXIT_USAGE
    if getattr(args, "no_start", False):
        report_prepared(config, name, as_json=args.json)
        return 0
    # Interrupts are counted from here on: a Ctrl-C between the start and the first read would leave an unknown run.
    with Interrupts() as interrupts:
        started = start_run(config, name)
        if args.detach:
            report_detached(started, as_json=args.json)
            return 0
        return follow_to_end(started, interrupts, as_json=args.json)


def write_batch_file(args: argparse.Namespace, output: str | None, processes: int | None, *more: str) -> int:
    """Write a batch file; returns the exit code.

    Args:
        args: The configuration and the options of the file.
        output: The file, ``-`` for standard output; None for the run's name.
        processes: Processes on each node; None for the configuration's number.
        *more: Words of the command line that makes the run, besides ``--set``.

    Raises:
        UserError: If the run would be refused, or the file exists and may not be replaced.
    """
    from core.commands.configuration import read_config
    from core.launch.slurm import SlurmJob
    from core.runs.record.store import make_slug
    from core.units import counted

    path = Path(args.config).absolute()
    several = [] if processes is None else [f"distributed.processes={processes}"]
    config = read_config(path, [*args.set, *several], getattr(args, "preset", None), is_for_here=False)
    check_model(config)
    check_data(config)
    name = make_slug(args.name or path.stem)
    processes = config.distributed.processes or sum(name != "all" for name in config.distributed.named_gpus) or 1
    job = SlurmJob(
        config=path,
        options=[*(word for text in args.set for word in ("--set", text)), *more],
        name=name,
        nodes=args.nodes,
        processes=processes,
        cards=0 if config.hardware.device == "cpu" else processes,
        restarts=config.distributed.restarts,
        time=args.time,
        partition=args.partition,
        account=args.account,
    )
    if output == "-":
        put(job.batch_file())
        return 0
    out = Path(os.path.expanduser(output or f"{name}.sbatch"))
    write_file(out, job.batch_file(), force=args.force)
    out.chmod(0o755)
    if args.json:
        emit({"file": str(out), "nodes": job.nodes, "processes": job.nodes * job.processes, "cards": job.cards})
        return 0
    say(str(out))
    everywhere = counted(job.nodes * job.processes, "process", "processes")
    note(f"{counted(job.nodes, 'node')}, {everywhere}; submit it with: sbatch {out}")
    return 0


def _refuse_job_options(args: argparse.Namespace) -> None:
    given = {
        "--nodes": args.nodes != 1,
        **{f"--{name}": getattr(args, name) for name in ("time", "partition", "account", "force")},
    }
    if (flag := next((flag for flag, is_given in given.items() if is_given), None)) is not None:
        raise UserError(f"{flag} goes with --slurm.", "Name the batch file with --slurm FILE.")


def allow(config: Config, codes: Sequence[RefusalCode]) -> Config:
    """The configuration with more codes in ``data.allow``."""
    from core.config.choices import allowed_codes

    every = [*allowed_codes(config.data.allow), *codes]
    return config.model_copy(update={"data": config.data.model_copy(update={"allow": list(dict.fromkeys(every))})})


def check_model(config: Config) -> None:
    """Refuse a base model that is missing or cannot be trained by its description, an adapter that does not fit, and
    missing templates, corrections or prompts.

    A model that is only not prepared yet is prepared by the worker, which also checks tokenizer and weights.

    Raises:
        UserError: In these cases.
    """
    from core.models.sandboxed import check_base
    from core.runs.catalog.trained import check_beginning

    check_base(config.model.base)
    check_beginning(config)
    template = config.template.file
    if template is not None and not os.path.isfile(template):
        raise UserError(f"There is no template file {template}.", "Fix template.file, or leave it out.")
    if config.data.corrections is not None:
        from core.chat.corrections import read_corrections

        if not read_corrections(Path(config.data.corrections)):
            raise UserError(f"There is no correction in {config.data.corrections}.", "Leave data.corrections out.")
    if config.eval.prompts is not None:
        from core.chat.prompts import read_prompts

        read_prompts(Path(config.eval.prompts))


def check_data(config: Config) -> None:
    """Open every data file and recognize its format, so that a bad one is refused before the start.

    Raises:
        UserError: For the first file that cannot be used.
    """
    from core.data.formats.detect import refuse_untrainable

    for source, found in recognize_data(config):
        refuse_untrainable(found, source.name, config.train.objective)


def recognize_data(config: Config) -> Iterator[tuple[DataSource, Detection]]:
    """Every source of a configuration with the format of its first rows, those trained on first.

    Raises:
        UserError: For the first file that cannot be read.
    """
    from core.data.registries.resolve import flat_sources, training_sources

    data = config.data
    trained = [source for sources, _ in training_sources(data) for source in sources]
    for source in [*trained, *flat_sources(data.eval, data.format, data.columns)]:
        with source.open() as file:
            yield source, source.recognize(file)


def report_prepared(config: Config, name: str, *, as_json: bool) -> None:
    """Make the directory of a run that other programs start, and print its path.

    Raises:
        UserError: If it cannot be written.
    """
    from core.config.derived import torchrun_line
    from core.runs.record.store import create_run

    made = create_run(config, name)
    if as_json:
        emit({"run": made.id, "directory": str(made.path)})
        return
    say(str(made.path))
    note(
        f"Start its processes within a minute: {torchrun_line(config, str(made.path))}",
        "Several machines: the same on each, with --nnodes, its own --node-rank and the first one's --master-addr.",
    )


def report_detached(started: Run, *, as_json: bool) -> None:
    """Print the id of a detached run, and how to come back to it."""
    if as_json:
        emit({"run": started.id})
        return
    say(started.id)
    note(f"Follow it with: {PROGRAM} watch {started.id}   (or {PROGRAM} --run {started.id})")


def follow_to_end(started: Run, interrupts: Interrupts, *, as_json: bool, skip_past: bool = False) -> int:
    """Show the progress of a run until it is over, then its summary.

    Args:
        started: The run.
        interrupts: The counter of Ctrl-C, active since before the start.
        as_json: Whether the summary is printed as JSON.
        skip_past: Whether only new events are shown.

    Returns:
        The exit code of the run, or 130 when the user left it.
    """
    from core.commands.follow import follow, leave
    from core.commands.progress import Progress
    from core.commands.summary import report

    note(f"run {started.id}")
    followed = follow(started, Progress(), stop_on_interrupt=True, skip_past=skip_past, interrupts=interrupts)
    return leave(started) if followed is None else report(followed, as_json=as_json)
