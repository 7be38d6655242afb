"""Data files written for tests."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from core.data.files.reader import all_rows, open_rows
from core.data.files.rows import Row
from core.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    """A file, its directories included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(rows: Iterable[Any]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of prompt and completion."""
    return [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(first, first + count)]


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 7) -> Path:
    """A Parquet file of several row groups."""
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def write_arrow(path: Path, rows: list[dict[str, Any]], *, stream: bool) -> Path:
    """An Arrow file, or a stream as ``datasets`` saves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return path


def write_zstd(path: Path, content: bytes) -> Path:
    """A file compressed with zstd."""
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)
    return path


def read_rows(path: Path) -> Iterator[Row]:
    """All rows of a dataset."""
    yield from all_rows(open_rows(path))


def refusal(path: Path) -> UserError:
    """The error of reading a dataset."""
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert caught.value.hint
    return caught.value


def values(found: Iterable[Row]) -> list[dict[str, Any] | None]:
    """Fields of each row."""
    return [row.data for row in found]


def descriptors(directory: Path) -> list[str]:
    """Files below a directory that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [target for target in found if target.startswith(str(directory))]
