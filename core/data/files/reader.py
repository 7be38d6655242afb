"""Dataset reader: opens data files and directories, to read any page of rows, or all rows in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.data.files.rows import NoRowsError, Row, RowFile
from core.data.files.shards import ShardedRows, list_shards, split_reference
from core.data.files.source import open_source
from core.data.files.text_rows import TextRows

__all__ = ["ROW_LIMIT", "NoRowsError", "Row", "RowFile", "all_rows", "open_files", "open_rows", "read_rows"]

#: Longest row parsed, in bytes; longer rows are reported with their size.
ROW_LIMIT = 8 << 20

_BATCH = 256


def open_rows(path: Path, row_limit: int = ROW_LIMIT) -> RowFile:
    """Open a dataset and index its first rows, so that a page can be shown at once.

    Args:
        path: JSON Lines, JSON (an array, an object with an array, an object of arrays), CSV, TSV, text, Parquet or
            Arrow, also compressed with gzip or zstd; a directory of such files, or ``directory#split`` for one split;
            a directory saved by ``datasets``.
        row_limit: Longest row parsed, in bytes; longer rows have an error.

    Raises:
        UserError: If it is missing, special, unreadable, empty, damaged, of an unsupported kind, or without rows.
    """
    path, split = split_reference(path)
    if os.path.isdir(path):  # not the method, which raises without permission
        return open_files(path, list_shards(path, split), row_limit)
    return TextRows(open_source(path), row_limit)


def open_files(directory: Path, files: Sequence[Path], row_limit: int = ROW_LIMIT) -> RowFile:
    """Open files of a directory, in the given order, as one dataset.

    Raises:
        UserError: As :func:`open_rows`.
    """
    return ShardedRows(directory, list(files), lambda shard: TextRows(open_source(shard), row_limit))


def read_rows(path: Path, row_limit: int = ROW_LIMIT) -> Iterator[Row]:
    """All rows in order, read as needed; unreadable rows have an error.

    Raises:
        FileChangedError: If the file changes meanwhile.
        UserError: As :func:`open_rows`.
    """
    yield from all_rows(open_rows(path, row_limit))


def all_rows(file: RowFile) -> Iterator[Row]:
    """All rows of an open dataset, in order; closes the dataset at the end.

    Raises:
        FileChangedError: If a file changes meanwhile.
        UserError: If it cannot be read.
    """
    with file:
        done = 0
        while True:
            while done < file.count_known:
                page = file.rows(done, _BATCH)
                done += len(page)
                yield from page
            if file.complete:
                return
            file.advance()
