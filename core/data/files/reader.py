"""Dataset reader: opens data files and directories; any page of rows at once, or all rows in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.data.files.rows import NoRowsError, Row, RowFile
from core.data.files.shards import ShardedRows, list_shards, split_reference
from core.data.files.source import open_source
from core.data.files.text_rows import TextRows

__all__ = ["ROW_LIMIT", "NoRowsError", "Row", "RowFile", "all_rows", "open_files", "open_rows", "read_rows"]

#: Longest row that is parsed, in bytes; a longer one is reported with its size.
ROW_LIMIT = 8 << 20

_BATCH = 256


def open_rows(path: Path, row_limit: int = ROW_LIMIT) -> RowFile:
    """Open a dataset and index its first rows, so that a page can be shown at once.

    Args:
        path: JSON Lines, JSON (an array, an object with one, an object of arrays), CSV, TSV, text, Parquet or Arrow;
            the text ones also compressed with gzip or zstd; a directory of such files, ``directory#split`` for those
            of one split; a directory saved by ``datasets``.
        row_limit: Longest row parsed, in bytes; longer ones come as rows with an error.

    Raises:
        UserError: If it is missing, special, unreadable, empty, damaged, of a kind that is not read, or without rows.
    """
    path, split = split_reference(path)
    if os.path.isdir(path):  # not the method, which raises without permission
        return open_files(path, list_shards(path, split), row_limit)
    return TextRows(open_source(path), row_limit)


def open_files(directory: Path, files: Sequence[Path], row_limit: int = ROW_LIMIT) -> RowFile:
    """Open some files of a directory, in their order, as one dataset.

    Raises:
        UserError: As :func:`open_rows`.
    """
    return ShardedRows(directory, list(files), lambda shard: TextRows(open_source(shard), row_limit))


def read_rows(path: Path, row_limit: int = ROW_LIMIT) -> Iterator[Row]:
    """All rows in order, in little memory; unreadable ones come with their error.

    Raises:
        FileChangedError: If the file changes meanwhile.
        UserError: As :func:`open_rows`.
    """
    yield from all_rows(open_rows(path, row_limit))


def all_rows(file: RowFile) -> Iterator[Row]:
    """All rows of an open dataset in order; the dataset is closed at the end.

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
