"""``runs``: all runs, newest first."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.commands.common import PROGRAM, add_json_flag, emit, note, print_table

if TYPE_CHECKING:
    from core.runs.catalog import RunRow

_HEADINGS = ("RUN", "STATE", "STEP", "LOSS", "STARTED", "MODEL")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_json_flag(parser, "print a JSON array with an object for each run")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from core.export.result import list_exports
    from core.runs.catalog import RunCatalog
    from core.runs.oom import SIGN

    rows = RunCatalog().rows()
    if args.json:
        exports: dict[str, list[str]] = {}
        for export in list_exports():
            exports.setdefault(export.run, []).append(str(export.path))
        emit([describe_row(row, exports.get(row.run.id, ())) for row in rows])
    elif rows:
        _print_table(rows)
        for row in rows:
            if SIGN in row.reason:
                note(f"{row.run.id}: {row.reason}")
    else:
        note(f"There are no runs yet. Start one with '{PROGRAM} demo' or '{PROGRAM} train CONFIG'.")
    return 0


def describe_row(row: RunRow, exports: Sequence[str] = ()) -> dict[str, Any]:
    """A run as an entry of the list.

    Args:
        row: The run.
        exports: The directories of its exports.

    Returns:
        ``id``, ``state``, ``reason``, ``step``, ``total_steps``, ``loss`` (of the last step), ``model``, ``started``
        and ``updated`` (Unix seconds), ``path``, ``pending`` (requests that wait for the end of the step),
        ``progress`` (``what``, ``done`` and ``total`` within a step or an evaluation), ``exports`` (the directories of
        its exports in the home, newest first) and ``refused`` (what the result misses of ``eval.gate``, empty where it
        passes); None where something is unknown.
    """
    return {
        "id": row.run.id,
        "state": row.state,
        "reason": row.reason,
        "step": row.step,
        "total_steps": row.total_steps,
        "loss": row.loss,
        "model": row.base,
        "started": row.started or None,
        "updated": row.updated or None,
        "path": str(row.run.path),
        "pending": list(row.pending),
        "progress": dataclasses.asdict(row.progress) if row.progress is not None else None,
        "exports": list(exports),
        "refused": row.refused,
    }


def state_words(row: RunRow) -> str:
    """The state, and what the run is about to do or how far its step is: ``training (pausing)``, ``training (3/8)``."""
    from core.runs.activity import doing, progress_words

    if row.refused:
        return f"{row.state} (refused)"
    within = progress_words(row.progress) if row.progress is not None and row.progress.total > 1 else ""
    told = doing(row.pending) or within
    return f"{row.state} ({told})" if told and row.state not in ("stalled", "stopping") else row.state


def _print_table(rows: Sequence[RunRow]) -> None:
    from core.text import one_line
    from core.units import format_moment, format_number

    table = [_HEADINGS]
    for row in rows:
        started = format_moment(row.started, "%Y-%m-%d %H:%M") if row.started else "–"
        step = f"{row.step}/{row.total_steps}" if row.total_steps else "–"
        model = one_line((row.base or "–").rpartition("/")[2], 40)
        table.append((one_line(row.run.id, 60), state_words(row), step, format_number(row.loss), started, model))
    print_table(table, {_HEADINGS.index("STEP"), _HEADINGS.index("LOSS")})
