"""``runs``: all runs, newest first."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from core.commands.common import PROGRAM, add_json_flag, emit, note, say

if TYPE_CHECKING:
    from core.runs.store import Run

_HEADINGS = ("RUN", "STATE", "STEP", "LOSS", "STARTED", "MODEL")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_json_flag(parser, "print a JSON array with an object for each run")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from core.runs.oom import SIGN
    from core.runs.store import list_runs

    rows = [describe_run(run) for run in list_runs()]
    if args.json:
        emit(rows)
    elif rows:
        _print_table(rows)
        for row in rows:
            if SIGN in row["reason"]:
                note(f"{row['id']}: {row['reason']}")
    else:
        note(f"There are no runs yet. Start one with '{PROGRAM} demo' or '{PROGRAM} train CONFIG'.")
    return 0


def describe_run(run: Run) -> dict[str, Any]:
    """A run as an entry of the list.

    Returns:
        ``id``, ``state``, ``reason``, ``step``, ``total_steps``, ``loss`` (of the last step), ``model``, ``started``
        and ``updated`` (Unix seconds), ``path``; None where something is unknown.
    """
    from core.runs.history import last_step

    state = run.state()
    last = last_step(run)
    return {
        "id": run.id,
        "state": state.state,
        "reason": state.reason,
        "step": max(state.step, last.step) if last and not state.step else state.step,
        "total_steps": state.total_steps,
        "loss": last.loss if last else None,
        "model": _model(run),
        "started": _started(run),
        "updated": state.updated or None,
        "path": str(run.path),
    }


def _model(run: Run) -> str | None:
    # A run whose configuration is damaged is listed all the same.
    base = run.values().get("model.base")
    return base if isinstance(base, str) else None


def _started(run: Run) -> float | None:
    """When the run was made: its configuration is written once, before anything else."""
    try:
        return run.config_path.stat().st_mtime
    except OSError:
        return None


def _print_table(rows: list[dict[str, Any]]) -> None:
    from core.text import one_line
    from core.units import format_moment, format_number

    table = [_HEADINGS]
    for row in rows:
        started = format_moment(row["started"], "%Y-%m-%d %H:%M") if row["started"] else "–"
        step = f"{row['step']}/{row['total_steps']}" if row["total_steps"] else "–"
        model = one_line(str(row["model"] or "–").rpartition("/")[2], 40)
        table.append((one_line(row["id"], 60), row["state"], step, format_number(row["loss"]), started, model))
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEADINGS))]
    numbers = {_HEADINGS.index("STEP"), _HEADINGS.index("LOSS")}
    for line in table:
        cells = [
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())
