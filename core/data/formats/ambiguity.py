"""Format ambiguity: datasets that fit more than one format, so the user must choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from core.config.choices import Format
from core.data.files.rows import Row
from core.data.formats.detect import Detection
from core.data.formats.shapes import FITS, format_of

#: Share of rows in another format above which a file is reported as mixed.
MIXED_SHARE = 0.05
# Formats that rows of one file may mix without ambiguity.
_COMPATIBLE: tuple[frozenset[Format], ...] = (
    frozenset({"messages", "sharegpt"}),
    frozenset({"alpaca", "prompt_completion"}),
)


def find_ambiguity(rows: Iterable[Row], detection: Detection, wanted: str = "auto") -> str:
    """Reason why the format of rows is ambiguous, in one sentence; empty if it is clear, or the user has chosen.

    Args:
        rows: The first rows.
        detection: The detected format.
        wanted: ``data.format``.
    """
    if wanted != "auto" or detection.columns is not None:
        return ""
    readable = [row.data for row in rows if row.data is not None]
    votes = Counter(found for data in readable if (found := format_of(data)) is not None)
    others = [(name, count) for name, count in votes.most_common() if not _same(name, detection.format)]
    if others and others[0][1] > MIXED_SHARE * len(readable):
        name, count = others[0]
        return (
            f"{votes[detection.format]} of the first {len(readable)} rows are {detection.format}, {count} are {name}."
        )
    for data in readable:
        if second := _second_reading(data, detection.format):
            return f"The rows have the columns of {detection.format} and those of {second}."
    return ""


def _second_reading(data: Mapping[str, Any], chosen: Format) -> str:
    """Format of a second conversation in a row, in columns of its own; empty if there is none."""
    if chosen not in ("messages", "sharegpt") or not FITS[chosen](data):
        return ""
    structured: tuple[Format, ...] = ("alpaca", "prompt_completion")
    return next((name for name in structured if FITS[name](data)), "")


def _same(one: Format, other: Format) -> bool:
    return one == other or any({one, other} <= group for group in _COMPATIBLE)
