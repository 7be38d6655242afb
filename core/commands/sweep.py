"""``queue sweep`` and ``queue results``: a run for each combination of values, and a table of their results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands.common import EXIT_ERROR, agrees, emit, note, print_table, say
from core.commands.starting import tell_runner, tell_total

if TYPE_CHECKING:
    from core.queue.estimate import Total
    from core.queue.sweep import SweepRow, Variant


def sweep(args: argparse.Namespace) -> int:
    """Put a run for each combination into the queue."""
    from core.config.document import ConfigDocument
    from core.queue.sweep import axis_of, combinations, make_variants

    document = ConfigDocument.load(Path(args.config))
    document.apply(args.set)
    axes = [axis_of(text, document) for text in args.over]
    return queue_variants(args, make_variants(document, combinations(axes, args.random, args.seed)))


def queue_variants(args: argparse.Namespace, variants: Sequence[Variant]) -> int:
    """Check runs, show them with their expected time and energy, ask, and put them into the queue as a sweep.

    Args:
        args: ``config``, ``set``, ``name``, ``yes``, ``start`` and ``json``.
        variants: The runs.

    Raises:
        UserError: If a run is refused, or the queue cannot be written.
    """
    from core.queue.entry import words_of
    from core.queue.estimate import Estimator, total_of
    from core.queue.sweep import add_variants
    from core.runs.outlook.forecast import unmet

    path = Path(args.config)
    check_variants(variants)
    estimator = Estimator()
    estimates = [estimator.estimate(variant.config) for variant in variants]
    total = total_of(estimates)
    for variant, found in zip(variants, estimates, strict=True):
        # The start of a variant is unknown, so its deadline is not checked.
        wishes = "".join(f" · {wish}" for wish in unmet(variant.config, found, None))
        note(f"  {words_of(variant.values)}{wishes}")
    note(tell_total(len(variants), total))
    question = f"Put {len(variants)} run{'' if len(variants) == 1 else 's'} into the queue?"
    if not args.yes and not agrees(question, "Add --yes to do it without a question."):
        note("Nothing added.")
        return EXIT_ERROR
    added = add_variants(variants, args.name or path.stem, str(path.absolute()), args.set)
    runner = tell_runner(start=args.start)
    if args.json:
        emit(describe_sweep(added[0].sweep or "", [entry.id for entry in added], total, runner=runner))
    else:
        say(added[0].sweep or "")
    return 0


def describe_sweep(sweep_id: str, entries: Sequence[int], total: Total, *, runner: bool) -> dict[str, Any]:
    """A sweep that was added, for ``--json``."""
    return {
        "sweep": sweep_id,
        "entries": list(entries),
        "seconds_expected": total.seconds if not total.unknown else None,
        "watt_hours_expected": total.watt_hours if not total.without_energy else None,
        "expected_by": total.by,
        "early_ends": len(total.early_ends),
        "runner": runner,
    }


def check_variants(variants: Sequence[Variant]) -> None:
    """Check the models, the data and the rules between options of all variants.

    Raises:
        UserError: For the first variant that is refused.
    """
    from core.commands.configuration import gather_facts
    from core.commands.train import check_data, check_model
    from core.config.rules.check import check_rules
    from core.errors import UserError

    seen: set[str] = set()
    for variant in variants:
        for remark in check_rules(variant.config, gather_facts(variant.config)):
            if remark.level == "error":
                raise UserError(remark.sentence, f"It is the variant {' '.join(variant.assignments)}.")
        section = variant.config.model_dump_json(include={"model", "data", "template"})
        if section not in seen:
            seen.add(section)
            check_model(variant.config)
            check_data(variant.config)


def results(args: argparse.Namespace) -> int:
    """Print the table of a sweep."""
    from core.queue.fate import run_of
    from core.queue.store import read_queue
    from core.queue.sweep import sweep_rows
    from core.runs.catalog.compare import read_record
    from core.runs.catalog.learning_curve import LearningCurve

    entries = read_queue().of_sweep(args.sweep)
    rows = sweep_rows(entries)
    runs = [run_of(entry) for entry in entries if entry.run is not None]
    curve = LearningCurve.of([read_record(run) for run in runs if run.events_path.exists()], args.by or "")
    if args.json:
        told = curve.to_dict() if curve is not None else None
        emit({"sweep": args.sweep, "variants": [row.to_dict() for row in rows], "learning_curve": told})
        return 0
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    headings = ("", "ID", *(name.rpartition(".")[2] for name in names), "STATE", "EVAL", "LOSS", "TOK/S", "WH", "TIME")
    print_table([headings, *(_cells(row, names) for row in rows)], set(range(len(names) + 3, len(headings))))
    if not any(row.is_best for row in rows):
        note("No variant has a held-out loss yet, so none is the best.")
    if curve is not None:
        say("", *curve.lines())
    return 0


def _cells(row: SweepRow, names: Sequence[str]) -> tuple[str, ...]:
    from core.text import one_line
    from core.units import format_duration, format_number

    values = (row.values.get(name) for name in names)
    rate = f"{row.tokens_per_second:,.0f}" if row.tokens_per_second is not None else "–"
    return (
        "*" if row.is_best else "",
        str(row.entry),
        *(f"{value:g}" if isinstance(value, float) else one_line(str(value), 24) for value in values),
        row.state,
        format_number(row.best_eval_loss),
        format_number(row.loss),
        rate,
        f"{row.energy_wh:,.1f}" if row.energy_wh is not None else "–",
        format_duration(row.seconds) if row.seconds is not None else "–",
    )
