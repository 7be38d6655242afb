"""``runs``: runs with their results, newest first or in another order."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.commands.common import PROGRAM, add_json_flag, emit, fields, note, print_table
from core.runs.catalog.table import DEFAULT_SORT, SORT_COLUMNS

if TYPE_CHECKING:
    from core.runs.catalog.rows import RunFigures, RunRow

#: Figures of a run in the list, as the fields of :class:`~core.runs.catalog.rows.RunFigures`.
_FIGURES = (
    *("eval_loss", "exact_match", "best_loss", "best_step", "tokens", "tokens_per_second", "energy_wh"),
    *("working_seconds", "size"),
)
#: Number of unread records from which on reading them is announced.
_MANY = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--sort", choices=tuple(SORT_COLUMNS), default=DEFAULT_SORT)
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("--filter", metavar="WORDS", default="")
    parser.add_argument("--all", action="store_true")
    add_json_flag(parser, "print a JSON array with an object for each run")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from core.export.result import list_exports
    from core.runs.catalog.rows import RunCatalog
    from core.runs.catalog.table import select_rows, sort_rows
    from core.runs.record.state import KILLED

    known = RunCatalog(is_cached=True).rows()
    rows = select_rows(known, args.filter, archived=args.all)
    figures = read_figures(rows)
    rows = sort_rows(rows, figures, args.sort, reverse=args.reverse)
    if args.json:
        exports: dict[str, list[str]] = {}
        for export in list_exports():
            exports.setdefault(export.run, []).append(str(export.path))
        emit([describe_row(row, exports.get(row.run.id, ()), figures[row.run.id]) for row in rows])
    elif rows:
        _print_table(rows, figures)
        for row in rows:
            if KILLED in row.reason:
                note(f"{row.run.id}: {row.reason}")
    elif known:
        archived = sum(row.labels.archived for row in known)
        more = f" {archived} of {len(known)} are archived: --all lists them." if archived and not args.all else ""
        note(f"No run matches.{more}")
    else:
        note(f"There are no runs yet. Start one with '{PROGRAM} demo' or '{PROGRAM} train CONFIG'.")
    return 0


def read_figures(rows: Sequence[RunRow]) -> dict[str, RunFigures]:
    """The figures of runs, by id; figures of ended runs are cached on disk."""
    from core.runs.catalog.rows import FigureReader

    reader = FigureReader(is_cached=True)
    missing = sum(not reader.is_known(row.run) for row in rows)
    if missing > _MANY:
        note(f"Reading the records of {missing} runs, once …")
    found = {row.run.id: reader.read(row.run) for row in rows}
    reader.save()
    return found


def describe_row(row: RunRow, exports: Sequence[str] = (), figures: RunFigures | None = None) -> dict[str, Any]:
    """A run as an entry of the list.

    Args:
        row: The run.
        exports: The directories of its exports.
        figures: Its figures; None where they are unknown.

    Returns:
        ``id``, ``state``, ``reason``, ``step``, ``total_steps``, ``loss`` (of the last step), ``model``, ``started``
        and ``updated`` (Unix seconds), ``path``, ``pending`` (requests that wait for the end of the step),
        ``progress`` (``what``, ``done`` and ``total`` within a step or an evaluation), ``exports`` (the directories of
        its exports in the home, newest first) and ``refused`` (the bars of ``eval.gate`` that the result misses, empty
        if it passes); of its configuration ``method``, ``rank``, ``learning_rate``, ``batch_size`` and ``data`` (file
        names), and the run that it trains further as ``parent``;
        its labels ``name``, ``tags``, ``note`` and ``archived``; its figures ``eval_loss`` and ``exact_match`` (of the
        last evaluation), ``best_loss`` and ``best_step`` (of the best one), ``tokens``, ``tokens_per_second``,
        ``energy_wh``, ``working_seconds`` and ``size`` (bytes), and with its tariff ``cost`` and ``currency``. None
        where something is unknown.
    """
    measured = fields(figures, *_FIGURES) if figures is not None else dict.fromkeys(_FIGURES)
    return {
        "id": row.run.id,
        **fields(row, "state", "reason", "step", "total_steps", "loss"),
        "model": row.base,
        "started": row.started or None,
        "updated": row.updated or None,
        "path": str(row.run.path),
        "pending": list(row.pending),
        "progress": dataclasses.asdict(row.progress) if row.progress is not None else None,
        "exports": list(exports),
        "refused": row.refused,
        "method": row.method or None,
        **fields(row, "rank", "learning_rate", "batch_size"),
        "data": list(row.data),
        "parent": row.parent or None,
        **fields(row.labels, "name", "tags", "note", "archived"),
        **measured,
        "cost": row.tariff.cost(measured["energy_wh"]),
        "currency": row.tariff.currency,
    }


def state_words(row: RunRow) -> str:
    """The state with a pending request or the progress of the step: ``training (pausing)``, ``training (3/8)``."""
    from core.runs.record.sentences import doing, progress_words

    if row.refused:
        return f"{row.state} (refused)"
    within = progress_words(row.progress) if row.progress is not None and row.progress.total > 1 else ""
    told = doing(row.pending) or within
    word = row.word or row.state
    return f"{word} ({told})" if told and row.state not in ("stalled", "stopping") else word


def _cells(row: RunRow, figures: RunFigures) -> dict[str, str]:
    """The cells of a row by heading, each number with its unit or under a heading that has it."""
    from core.text import one_line
    from core.units import format_bytes, format_fixed, format_moment, format_number, format_rate

    labels = row.labels
    tags = " ".join(f"#{tag}" for tag in labels.tags)
    name = f"{labels.name} ({row.run.id})" if labels.name else one_line(row.run.id, 60)
    return {
        "RUN": name,
        "STATE": state_words(row),
        "STEP": f"{row.step}/{row.total_steps}" if row.total_steps else "–",
        "LOSS": format_number(row.loss),
        "BEST": format_number(figures.best_loss),
        "SPEED": format_rate(figures.tokens_per_second),
        "ENERGY": "–" if figures.energy_wh is None else f"{format_fixed(figures.energy_wh, 1)} Wh",
        "COST": row.tariff.words(figures.energy_wh),
        "STARTED": format_moment(row.started, "%Y-%m-%d %H:%M") if row.started else "–",
        "MODEL": one_line(row.base_name or "–", 40),
        "METHOD": row.method_words or "–",
        "DATA": one_line(", ".join(row.data) or "–", 40),
        "SIZE": format_bytes(figures.size),
        "NOTE": "  ".join(filter(None, (row.origin, tags, one_line(labels.note, 80), "(archived)" * labels.archived))),
    }


#: Right-aligned columns, and the order in which columns are dropped on a narrow terminal.
_NUMBERS = frozenset({"STEP", "LOSS", "BEST", "SPEED", "ENERGY", "COST", "SIZE"})
_LEAVING = ("SIZE", "METHOD", "DATA", "COST", "ENERGY", "SPEED", "MODEL", "NOTE", "STARTED", "BEST")


def _print_table(rows: Sequence[RunRow], figures: Mapping[str, RunFigures]) -> None:
    table = [_cells(row, figures[row.run.id]) for row in rows]
    widths = {name: max(len(name), *(len(cells[name]) for cells in table)) for name in table[0]}
    for name in ("COST", "NOTE"):
        if not any(cells[name] for cells in table):
            del widths[name]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        for name in _LEAVING:
            if sum(widths.values()) + 2 * (len(widths) - 1) > room:
                widths.pop(name, None)
    headings = list(widths)
    numbers = {column for column, name in enumerate(headings) if name in _NUMBERS}
    print_table([headings, *([cells[name] for name in headings] for cells in table)], numbers)
