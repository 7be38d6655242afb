"""``curve CONFIG``: a learning curve of runs on shares of the rows, trained here or put into the queue."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands.common import EXIT_ERROR, add_config, add_json_flag, emit, note, say
from core.commands.parser import ArgumentParser, whole_number
from core.errors import UserError

if TYPE_CHECKING:
    from core.queue.sweep import Variant
    from core.runs.record.store import Run


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    add_config(parser)
    parser.add_argument("--shares", metavar="SHARES", default="0.25,0.5,1")
    parser.add_argument("--seeds", metavar="N", type=whole_number, default=1)
    parser.add_argument("--by", metavar="FIELD")
    parser.add_argument("--name")
    parser.add_argument("--queue", action="store_true")
    parser.add_argument("--start", action="store_true", help="with --queue: start the runner as well")
    parser.add_argument("--yes", action="store_true")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Train the runs one after the other and print the curve, or queue them.

    Raises:
        UserError: If the configuration has no held-out rows, or a run is refused.
    """
    from core.commands.sweep import check_variants, queue_variants

    variants = curve_variants(args)
    if args.queue:
        return queue_variants(args, variants)
    check_variants(variants)
    return _train(args, variants)


def curve_variants(args: argparse.Namespace) -> list[Variant]:
    """The runs of a curve: each share of the rows with each seed, all for the same number of epochs.

    Raises:
        UserError: If the configuration has no held-out rows or a fixed number of steps, or a share is invalid.
    """
    from core.config.derived import holds_out
    from core.config.document import ConfigDocument
    from core.queue.sweep import Axis, combinations, make_variants, share_axis, split_values

    if args.by:
        # The answers are needed for the areas.
        args.set = ["eval.samples=100", *args.set]
    document = ConfigDocument.load(Path(args.config))
    document.apply(args.set)
    config = document.validate()
    if not holds_out(config):
        raise UserError("There are no held-out rows to measure the curve on.", "Set data.eval or data.eval_share.")
    if args.seeds > 1 and config.data.eval is None:
        raise UserError(
            "data.eval_share holds other rows out for each seed, so their losses do not compare.",
            "Name a file of held-out rows in data.eval, or leave --seeds out.",
        )
    if config.train.max_steps is not None:
        raise UserError(
            "train.max_steps gives all shares the same steps, so a small share would be seen many more times.",
            "Leave it out: the runs of a curve have the same number of epochs.",
        )
    axes = [share_axis(split_values(args.shares), document)]
    if args.seeds > 1:
        axes.append(Axis("train.seed", tuple(str(config.train.seed + number) for number in range(args.seeds))))
    return make_variants(document, combinations(axes))


def _train(args: argparse.Namespace, variants: list[Variant]) -> int:
    from core.commands.follow import Interrupts, follow, leave
    from core.commands.progress import Progress
    from core.launch.launcher import start_run
    from core.queue.entry import words_of
    from core.queue.sweep import name_of
    from core.runs.catalog.compare import read_record
    from core.runs.catalog.learning_curve import LearningCurve

    done: list[Run] = []
    for number, variant in enumerate(variants, 1):
        with Interrupts() as interrupts:
            started = start_run(variant.config, name_of(args.name or Path(args.config).stem, variant.values))
            note(f"{number} of {len(variants)}: {words_of(variant.values)}, run {started.id}")
            followed = follow(started, Progress(), stop_on_interrupt=True, interrupts=interrupts)
        if followed is None:
            return leave(started)
        if followed.state.state != "finished":
            note(f"{started.id} {followed.state.state}: {followed.state.reason}")
            return EXIT_ERROR
        done.append(started)
    curve = LearningCurve.of([read_record(one) for one in done], args.by or "")
    if args.json:
        emit({"runs": [one.id for one in done], "learning_curve": curve.to_dict() if curve is not None else None})
    elif curve is not None:
        say(*curve.lines())
    else:
        note("These shares gave the same rows, so there is no curve.")
    return 0
