"""``data --run RUN``: rows that a run's model has not learned, beside its own answers."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from core.commands.common import emit, note, say
from core.errors import UserError
from core.text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core.evaluation.row_losses import RowLosses, Twin, WorstRow

#: Rows that ``--worst`` takes.
MOST_ROWS = 1000
_LABEL = 12


def run(args: argparse.Namespace) -> int:
    """Measure the rows, unless a current measurement is kept in the run, and list the worst."""
    from core.commands.live_line import ProgressLine
    from core.evaluation.row_losses import WORST, read_losses, row_losses_job
    from core.runs.record.store import find_run

    wanted = WORST if args.worst is None else args.worst
    if not 1 <= wanted <= MOST_ROWS:
        raise UserError(f"--worst {wanted} is not a number of rows from 1 to {MOST_ROWS}.", "Write it as 40.")
    found = find_run(args.run)
    losses = None if args.again else read_losses(found)
    if losses is None or len(losses.worst) < min(wanted, losses.count) or not losses.is_current(found):
        with ProgressLine("The measurement was broken off.") as line:
            losses = row_losses_job(found, max(wanted, WORST)).run(line.follow)
    worst = _of_file(losses, args.file)[:wanted]
    if args.json:
        emit(as_json(losses, worst))
        return 0
    say(*render(losses, worst))
    note(*losses.notes)
    return 0


def _of_file(losses: RowLosses, file: str | None) -> Sequence[WorstRow]:
    """The worst rows of a file or a directory, or of all files."""
    if file is None:
        return losses.worst
    named = losses.of_data(file)
    if not named:
        raise UserError(
            f"Run {losses.run} was not trained on {one_line(file, 200)}, or also on another file of its name.",
            "Leave the file out to list the rows of all.",
        )
    return [row for row in losses.worst if row.place in named]


def as_json(losses: RowLosses, worst: Sequence[WorstRow]) -> dict[str, Any]:
    """The result as described in ``docs/reference/commands.md``."""
    return {
        "run": losses.run,
        "step": losses.step,
        "rows": losses.count,
        "mean_loss": round(losses.mean, 6),
        "worst": [dataclasses.asdict(row) for row in worst],
        "notes": list(losses.notes),
    }


def render(losses: RowLosses, worst: Sequence[WorstRow]) -> list[str]:
    """Lines, safe for a terminal."""
    step = "" if losses.step is None else f", step {losses.step}"
    lines = [f"run {losses.run}{step}: {losses.count} rows, mean loss {losses.mean:.3f} a token"]
    for row in worst:
        lines += [
            "",
            f"{_place(row)}  loss {row.loss:.2f}",
            *([f"  {'question':<{_LABEL}}{one_line(row.question, 400)}"] if row.question else []),
            f"  {'answer':<{_LABEL}}{one_line(row.answer, 400)}",
            *([f"  {'own answer':<{_LABEL}}{one_line(row.own, 400)}"] if row.own is not None else []),
            *(f"  same question in {_place(twin)}: {one_line(twin.answer, 200)}" for twin in row.twins),
        ]
    return lines


def _place(row: WorstRow | Twin) -> str:
    return f"{one_line(row.file, 120)}:{row.line}"
