"""Data file names: whether a file holds rows, its split, and the order of shards."""

from __future__ import annotations

import re
from pathlib import PurePath

from core.path_kind import ROW_SUFFIXES

#: Most files read of one dataset; each is kept open.
MOST_SHARDS = 512
#: Aliases of splits, and the names used here.
SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}

_SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=[-_./0-9]|$)", re.IGNORECASE)
_PACKED = (".gz", ".gzip", ".zst", ".zstd")
_DATA = frozenset(ROW_SUFFIXES).difference(_PACKED)
# Files next to data files that hold no rows.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "readme.txt", "license.txt"}


def is_data_name(name: str) -> bool:
    """Whether a file has a name like a data file."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _DATA


def holds_rows(name: str) -> bool:
    """Whether a file is named like a data file, and not like a description of one."""
    return is_data_name(name) and PurePath(name).name.lower() not in _ABOUT


def split_of(path: PurePath) -> str:
    """The split in a relative path (``train``, ``test``, ``validation``); empty if there is none."""
    found = _SPLIT.findall(path.as_posix())
    return SPLIT_NAMES.get(found[-1].lower(), found[-1].lower()) if found else ""


def ending(path: PurePath) -> str:
    """Extension that identifies the file type: ``.jsonl``, or ``.jsonl.gz`` if compressed."""
    last = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() + last if last in _PACKED else last


def natural(path: PurePath) -> list[tuple[int, int, str]]:
    """Natural sort key of a path: numbers in names compare as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
