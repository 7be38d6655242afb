"""Columns of rows that nothing reads, found so that no column is left out without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from core.data.formats.detect import Detection
from core.text import one_line

#: Names that are kept, and that are shown; of any more, only the count is given.
MOST_NAMES, SHOWN_NAMES = 1000, 12
_NAME_LENGTH = 80
#: Sets of columns whose reading is kept; most files have one.
_KEPT_SETS = 64


class UnreadColumns:
    """Finds the columns of rows that hold something and are not read.

    Args:
        detection: How the rows are read.
    """

    def __init__(self, detection: Detection) -> None:
        self._detection = detection
        self._by_columns: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, data: Mapping[str, Any]) -> list[str]:
        """Names of these columns in a usable row; empty columns are none of them."""
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
    """Add counts of columns, of at most :data:`MOST_NAMES` names, as rows of foreign files may each have others."""
    for name, count in found.items():
        if name in counts or len(counts) < MOST_NAMES:
            counts[name] += count


def describe_columns(names: Collection[str]) -> str:
    """Names in order and safe to show: ``category, id``, or the first of them and the number of the others."""
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
