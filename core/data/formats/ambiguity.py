"""Format ambiguity: datasets that can be read in more than one way, so that the user must choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from core.config.choices import Format
from core.data.files.rows import Row
from core.data.formats.detect import Detection
from core.data.formats.shapes import FITS, format_of

#: Least share of rows in another format for a file to be reported as mixed.
MIXED_SHARE = 0.05
# Formats of which one is redundant: a text column next to a conversation is mostly its rendering, and answers with a
# label are also answers.
_COMPATIBLE: tuple[frozenset[Format], ...] = (
    frozenset({"messages", "sharegpt"}),
    frozenset({"alpaca", "prompt_completion"}),
)


def find_ambiguity(rows: Iterable[Row], detection: Detection, wanted: str = "auto") -> str:
    """Reason why the reading of rows is ambiguous, one sentence; empty if it is not, or if the user has chosen.

    Args:
        rows: The first rows.
        detection: The format chosen for them.
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
    """Another conversation in a row, in columns of its own."""
    if chosen not in ("messages", "sharegpt") or not FITS[chosen](data):
        return ""
    structured: tuple[Format, ...] = ("alpaca", "prompt_completion")
    return next((name for name in structured if FITS[name](data)), "")


def _same(one: Format, other: Format) -> bool:
    return one == other or any({one, other} <= group for group in _COMPATIBLE)
