"""Table of runs: order and selection of its rows, the same for the command and the app."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from core.runs.catalog.rows import RunFigures, RunRow

#: A value to sort by; None where it is unknown.
_Value: TypeAlias = float | str | None


@dataclass(frozen=True)
class SortColumn:
    """A column that the table can be sorted by."""

    name: str
    value: Callable[[RunRow, RunFigures | None], _Value]
    descending: bool = False
    """True if its greatest values come first by default."""
    needs_figures: bool = False
    """True if its values are known only once the records of all runs have been read."""


def _figure(name: str) -> Callable[[RunRow, RunFigures | None], _Value]:
    return lambda _row, figures: getattr(figures, name) if figures is not None else None


#: By name, in the order in which a key turns through them; the first one is the default.
SORT_COLUMNS: Mapping[str, SortColumn] = {
    column.name: column
    for column in (
        SortColumn("started", lambda row, _: row.started, descending=True),
        SortColumn("best", _figure("best_loss"), needs_figures=True),
        SortColumn("loss", lambda row, _: row.loss),
        SortColumn("speed", _figure("tokens_per_second"), descending=True, needs_figures=True),
        SortColumn("energy", _figure("energy_wh"), descending=True, needs_figures=True),
        SortColumn("took", _figure("working_seconds"), descending=True, needs_figures=True),
        SortColumn("size", _figure("size"), descending=True, needs_figures=True),
        SortColumn("step", lambda row, _: row.step, descending=True),
        SortColumn("state", lambda row, _: row.state),
        SortColumn("name", lambda row, _: row.name.lower()),
        SortColumn("model", lambda row, _: row.base_name.lower() or None),
        SortColumn("method", lambda row, _: row.method_words or None),
        SortColumn("data", lambda row, _: ", ".join(row.data).lower() or None),
    )
}
DEFAULT_SORT = next(iter(SORT_COLUMNS))


def sort_rows(
    rows: Iterable[RunRow], figures: Mapping[str, RunFigures], by: str = DEFAULT_SORT, *, reverse: bool = False
) -> list[RunRow]:
    """Rows in the order of a column, equal values newest first; rows without a value always come last.

    Args:
        rows: The rows.
        figures: Known figures by run id.
        by: A name of :data:`SORT_COLUMNS`.
        reverse: Whether to reverse the column's usual direction.
    """
    column = SORT_COLUMNS[by]
    known: list[tuple[float | str, RunRow]] = []
    unknown: list[RunRow] = []
    for row in sorted(rows, key=lambda row: row.run.id, reverse=True):
        value = column.value(row, figures.get(row.run.id))
        if value is None or (isinstance(value, float) and math.isnan(value)):
            unknown.append(row)
        else:
            known.append((value, row))
    # Sorting is stable either way.
    known.sort(key=lambda pair: pair[0], reverse=column.descending != reverse)
    return [row for _, row in known] + unknown


def select_rows(rows: Iterable[RunRow], text: str = "", *, archived: bool = False) -> list[RunRow]:
    """The rows that a text selects, in their order.

    Each word of the text must be somewhere in the row: id, name, state, model, method, data, tags, note.
    ``#good`` is a tag; ``state:``, ``model:``, ``method:``, ``data:``, ``name:`` and ``note:`` say where to look.

    Args:
        rows: The rows.
        text: The words.
        archived: Whether archived runs are selected too.
    """
    words = text.lower().split()
    return [row for row in rows if (archived or not row.labels.archived) and _matches(row, words)]


def _matches(row: RunRow, words: Sequence[str]) -> bool:
    if not words:
        return True
    fields = {
        "name": f"{row.labels.name} {row.run.id}",
        "state": f"{row.state}{' refused' if row.refused else ''}{' archived' if row.labels.archived else ''}",
        "model": row.base_name,
        "method": row.method_words,
        "data": " ".join(row.data),
        "tag": " ".join(row.labels.tags),
        "note": row.labels.note,
    }
    lowered = {name: text.lower() for name, text in fields.items()}
    tags = {tag.lower() for tag in row.labels.tags}
    return all(_has(lowered, tags, word) for word in words)


def _has(fields: Mapping[str, str], tags: set[str], word: str) -> bool:
    if word.startswith("#") and len(word) > 1:
        return any(tag.startswith(word[1:]) for tag in tags)
    name, separator, rest = word.partition(":")
    if separator and name in fields:
        return rest in fields[name]
    return any(word in text for text in fields.values())
