"""What the names of data files tell: that they hold rows, of which split, and in which order they come."""

from __future__ import annotations

import re
from pathlib import PurePath

#: Files of one dataset that are read; each is kept open.
MOST_SHARDS = 512
#: Other words for a split, and the one that is used here.
SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}

_SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=[-_./0-9]|$)", re.IGNORECASE)
_PACKED = (".gz", ".gzip", ".zst", ".zstd")
_DATA = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather"})
# What lies beside data files and holds none.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "readme.txt", "license.txt"}


def is_data_name(name: str) -> bool:
    """Whether a file is called as data files are."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _DATA


def holds_rows(name: str) -> bool:
    """Whether a file is called as data files are, and not as those that describe them."""
    return is_data_name(name) and PurePath(name).name.lower() not in _ABOUT


def split_of(path: PurePath) -> str:
    """The split that a relative path says (``train``, ``test``, ``validation``); empty where it says none."""
    found = _SPLIT.findall(path.as_posix())
    return SPLIT_NAMES.get(found[-1].lower(), found[-1].lower()) if found else ""


def ending(path: PurePath) -> str:
    """What the file is, by its name: ``.jsonl``, or ``.jsonl.gz`` where it is packed."""
    last = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() + last if last in _PACKED else last


def natural(path: PurePath) -> list[tuple[int, int, str]]:
    """A key that sorts names in order, numbers in them as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
