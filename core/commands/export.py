"""``export RUN``: a run's trained model as files for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands.common import add_json_flag, emit, note, say
from core.commands.live_line import ProgressLine
from core.export.request import KINDS, MERGE_FROM, QUANTS, ROWS

if TYPE_CHECKING:
    from core.export.job import ExportProgress
    from core.export.plan import ExportPlan
    from core.export.result import ExportResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN[@STEP]")
    parser.add_argument("--to", required=True, choices=KINDS)
    parser.add_argument("--quant", type=str.upper, choices=QUANTS)
    parser.add_argument("--out", metavar="DIR")
    parser.add_argument("--merge-from", choices=MERGE_FROM, default="auto")
    parser.add_argument("--adapter-only", action="store_true")
    parser.add_argument(
        "--rows",
        metavar="N",
        type=int,
        default=ROWS,
        help=f"rows of your data on which it is compared with the trained model (default: {ROWS}; 0: unproven)",
    )
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Make the export, and print its files, the verdict of their proof, and lines to use them."""
    from core.export.job import export_job
    from core.export.plan import plan_export
    from core.export.request import ExportRequest
    from core.paths import user_path, working_directory
    from core.runs.catalog.trained import find_run_at

    found, step = find_run_at(args.run)
    out: Path | None = None if args.out is None else (working_directory() / user_path(args.out)).absolute()
    request = ExportRequest(
        run=found.path,
        kind=args.to,
        step=step,
        quant=args.quant,
        out=out,
        merge_from=args.merge_from,
        adapter_only=args.adapter_only,
        rows=args.rows,
    )
    plan = plan_export(request)
    note(plan_line(plan))
    if (reason := plan.unverified) is not None:
        note(f"{reason.message} {reason.hint}")
    with ProgressLine("The export was broken off; nothing of it is left.") as line:

        def follow(progress: ExportProgress) -> None:
            left = f"written: {progress.written}, unproven"
            if progress.written is not None and left not in line.broken_off:
                line.broken_off = f"The proof was broken off; {left}."
                line.message(left)
            line.follow(progress)

        result = export_job(plan).run(follow)
    if args.json:
        emit({**result.to_dict(), "commands": result.commands})
    else:
        say(*result_lines(result))
    return 0


def plan_line(plan: ExportPlan) -> str:
    """The plan on one line: source, target and size."""
    from core.units import format_bytes

    takes = ""
    if plan.largest:
        takes = f", {plan.size_in_words}"
        if plan.peak is not None and plan.peak > 2 * plan.largest:
            takes += f" ({format_bytes(plan.peak)} on the disk while it is made)"
    return f"{plan.trained.label} to {plan.target}{takes}"


def result_lines(result: ExportResult) -> list[str]:
    """An export in lines: its files, the verdict of its proof, and lines to use it."""
    from core.text import one_line
    from core.units import format_bytes, format_duration

    rows = [("directory", str(result.path))]
    rows += [("file", f"{one_line(file.name, 100)}, {format_bytes(file.bytes)}") for file in result.files]
    rows += [("note", note) for note in result.notes]
    rows += result.commands.items()
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    took = f"Exported in {format_duration(result.seconds)}."
    return [*lines, f"{result.verdict} {took}".strip()]
