"""Data files of the working directory and earlier runs, which the empty panes offer to start from."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError

#: Suffixes of files that are likely to be data; text files mostly are not.
_LIKELY = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json")
#: Maximum offered files, and maximum examined directory entries.
MOST_FILES = 6
_MOST_ENTRIES = 2000
#: JSON files without data after which no more are opened: a directory may have thousands of settings files.
_MOST_REFUSED = 20
#: Maximum bytes of a file whose rows are counted.
_COUNTED_BYTES = 16 << 20


@dataclass(frozen=True)
class FoundFile:
    """Data file.

    Args:
        path: The file.
        bytes: Its size.
        rows: The number of its rows; None if the file is too large to count them.
    """

    path: Path
    bytes: int
    rows: int | None


@dataclass(frozen=True)
class Here:
    """Data files and runs to start from.

    Args:
        files: Data files, the newest first.
        runs: The number of runs.
        last_run: The id of the newest run; empty if there is none.
        last_state: Its state.
        last_ended: The time of its last heartbeat in Unix seconds; 0 if unknown.
    """

    files: tuple[FoundFile, ...] = ()
    runs: int = 0
    last_run: str = ""
    last_state: str = ""
    last_ended: float = 0.0


def look_around(directory: Path) -> Here:
    """Look for data files in a directory, and for runs; blocks."""
    # Lazily, as the first paint needs Here.
    from core.runs.record.store import list_runs

    runs = list_runs()
    if not runs:
        return Here(find_files(directory))
    state = runs[0].state()
    return Here(find_files(directory), len(runs), runs[0].id, state.state, state.updated)


def find_files(directory: Path) -> tuple[FoundFile, ...]:
    """The data files of a directory, the newest first, without files of unknown format."""
    candidates: list[tuple[float, int, Path]] = []
    with suppress(OSError), os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_ENTRIES:
                break
            if entry.name.startswith(".") or not entry.name.lower().endswith(_LIKELY):
                continue
            with suppress(OSError):
                status = entry.stat()
                if entry.is_file() and status.st_size:
                    candidates.append((status.st_mtime, status.st_size, Path(entry.path)))
    found: list[FoundFile] = []
    refused = 0
    for _, size, path in sorted(candidates, key=lambda item: (-item[0], item[2])):
        if len(found) >= MOST_FILES:
            break
        if _is_json(path) and refused >= _MOST_REFUSED:
            continue
        # Unreadable files and files of unknown format are not offered.
        try:
            found.append(FoundFile(path, size, _count(path, size)))
        except (UserError, OSError, ValueError, RecursionError, MemoryError):
            refused += _is_json(path)
    return tuple(found)


def _count(path: Path, size: int) -> int | None:
    """The number of rows of a file; None if the file is large.

    Raises:
        UserError: If its format is not known.
    """
    from core.data.files.reader import open_rows
    from core.data.formats.detect import SAMPLE, detect

    with open_rows(path) as file:
        if _is_json(path):
            # Most JSON files are settings; tables and JSON lines are data, whatever their columns.
            detect(file.rows(0, SAMPLE), path.name)
        if size > _COUNTED_BYTES:
            return None
        file.index()
        return file.count_known


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"
