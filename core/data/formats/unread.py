"""Filled columns that nothing reads, so that no column is left out silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from core.data.formats.detect import Detection
from core.text import one_line

#: Most names counted, and most names shown.
MOST_NAMES, SHOWN_NAMES = 1000, 12
_NAME_LENGTH = 80
#: Most cached sets of columns; most files have one.
_KEPT_SETS = 64


class UnreadColumns:
    """Finds the filled columns of rows that nothing reads.

    Args:
        detection: Format of the rows.
    """

    def __init__(self, detection: Detection) -> None:
        self._detection = detection
        self._by_columns: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, data: Mapping[str, Any]) -> list[str]:
        """Names of the filled, unread columns of a usable row."""
        columns = tuple(data)
        unread = self._by_columns.get(columns)
        if unread is None:
            read = self._detection.read_columns(data)
            unread = tuple(name for name in columns if name not in read)
            if len(self._by_columns) >= _KEPT_SETS:
                self._by_columns.clear()
            self._by_columns[columns] = unread
        return [name[:_NAME_LENGTH] for name in unread if _holds(data[name])]


def count_names(counts: Counter[str], found: Mapping[str, int]) -> None:
    """Add counts of columns, for at most :data:`MOST_NAMES` names, since every row may have other columns."""
    for name, count in found.items():
        if name in counts or len(counts) < MOST_NAMES:
            counts[name] += count


def describe_columns(names: Collection[str]) -> str:
    """Sorted names, safe to show: ``category, id``, or the first names and the number of the rest."""
    ordered = sorted(names)
    shown = ", ".join(one_line(name, 40) for name in ordered[:SHOWN_NAMES])
    more = len(ordered) - SHOWN_NAMES
    if more <= 0:
        return shown
    return f"{shown} and {'at least ' if len(ordered) >= MOST_NAMES else ''}{more} more"


def _holds(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    return value is not None and value != [] and value != {}
