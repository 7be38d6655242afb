"""Rows left out of training by ``data.exclude``, named by file and line: ``rows.jsonl:17``, ``rows.jsonl:3-9``.

A file is named by the end of its path, in whole parts: ``rows.jsonl``, ``mine/rows.jsonl``, or the whole path. In a
file without lines, such as Parquet, the number of the row takes the place of the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from core.errors import UserError
from core.text import one_line

if TYPE_CHECKING:
    from core.data.files.rows import Row

#: Reason for not training on a row that ``data.exclude`` leaves out.
EXCLUDED = "excluded"
_ENTRY = re.compile(r"(?P<file>.+):(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?", re.DOTALL)


def row_line(path: Path, row: Row) -> tuple[str, int]:
    """Path of a row's file, and its line, from 1; its number in a file without lines.

    Args:
        path: Path of the file, or of the directory of files, that the row was read from.
        row: The row.
    """
    return str(path / row.file if row.file else path), row.line or row.index + 1


class _Range(NamedTuple):
    """Lines of a file that an entry names."""

    parts: tuple[str, ...]
    first: int
    last: int

    def has(self, line: int) -> bool:
        return self.first <= line <= self.last


class Exclusion:
    """Finds the rows that the entries of ``data.exclude`` name.

    Args:
        entries: The entries.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = tuple(entries)
        self.files: dict[int, set[str]] = {}
        """Files in which each entry has named a row so far, by the entry's number."""
        self._ranges = [_parse(entry) for entry in entries]
        self._single: dict[str, dict[int, list[int]]] = {}
        self._longer: dict[str, list[int]] = {}

    def names(self, file: str, line: int) -> bool:
        """True if an entry names a row.

        Args:
            file: Path of its file.
            line: Its line, from 1; its number in a file without lines.
        """
        if not self._ranges:
            return False
        if file not in self._single:
            self._open(file)
        found = list(self._single[file].get(line, ()))
        found += [number for number in self._longer[file] if self._ranges[number].has(line)]
        for number in found:
            self.files.setdefault(number, set()).add(file)
        return bool(found)

    def _open(self, file: str) -> None:
        """Look up the entries of a file once, as it may have millions of rows."""
        parts = PurePath(file).parts
        single, longer = self._single.setdefault(file, {}), self._longer.setdefault(file, [])
        for number, (end, first, last) in enumerate(self._ranges):
            if parts[-len(end) :] != end:
                continue
            if first == last:
                single.setdefault(first, []).append(number)
            else:
                longer.append(number)

    def merge(self, files: Mapping[int, Iterable[str]]) -> None:
        """Add the :attr:`files` found by another process."""
        for number, paths in files.items():
            self.files.setdefault(number, set()).update(paths)

    def check(self, *, is_part: bool = False) -> None:
        """Refuse entries that do not name rows of one file, once all rows were seen.

        Args:
            is_part: True if only a part of the training files was read, so that entries may name rows of the others.

        Raises:
            UserError: If an entry names no row, or rows of several files.
        """
        for number, entry in enumerate(self.entries):
            files = sorted(self.files.get(number, ()))
            if not files and not is_part:
                raise UserError(
                    f"data.exclude names {one_line(entry, 200)}, and data.train has no such row.",
                    "Name rows by file and line as the Data pane shows them, or take the entry out.",
                )
            if len(files) > 1:
                raise UserError(
                    f"data.exclude names {one_line(entry, 200)}, and {len(files)} files have that name.",
                    f"Write more of the path, as in {one_line(files[0], 200)}.",
                )


def _parse(entry: str) -> _Range:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise UserError(
            f"data.exclude has {one_line(entry, 200)}, which names no row.", "Write FILE:LINE or FILE:FROM-TO."
        )
    first = int(match["first"])
    return _Range(PurePath(match["file"]).parts, first, int(match["last"] or first))


def entries_of(places: Iterable[tuple[str, int]]) -> list[str]:
    """Entries of ``data.exclude`` for rows, given by file and line; neighboring lines share an entry."""
    found: list[tuple[str, int, int]] = []
    for file, line in sorted(set(places)):
        if found and found[-1][0] == file and found[-1][2] == line - 1:
            found[-1] = (file, found[-1][1], line)
        else:
            found.append((file, line, line))
    return [f"{file}:{first}" if first == last else f"{file}:{first}-{last}" for file, first, last in found]
