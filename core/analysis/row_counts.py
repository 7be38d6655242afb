"""Row counts of datasets, without parsing the rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.data.registries.resolve import resolve_source

#: Rows compared to find out if a dataset repeats one row.
_COMPARED = 50


@dataclass(frozen=True)
class RowCount:
    """Number of rows of a dataset.

    Args:
        rows: The rows, readable or not.
        differ: True if at least two of the first rows differ.
    """

    rows: int
    differ: bool


def count_rows(entries: Iterable[str]) -> RowCount:
    """Count the rows of entries of ``data.train``; blocks, since every file is indexed.

    Raises:
        UserError: If an entry cannot be read.
    """
    count = 0
    seen: set[str] = set()
    for entry in entries:
        for source in resolve_source(entry):
            with source.open_shared() as file:
                file.index()
                known = file.count_known
                count += known if source.limit is None else min(known, source.limit)
                if len(seen) < 2:
                    seen.update(repr(row.data) for row in file.rows(0, _COMPARED))
    return RowCount(count, len(seen) > 1)
