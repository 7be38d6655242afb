"""Layout of the rows of a text file, recognized from its first bytes and its extension."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from core.errors import UserError

Kind = Literal["jsonl", "json", "csv", "text"]

#: Supported files, for messages.
READ = (
    "JSON Lines (.jsonl), JSON (.json), CSV (.csv, .tsv), Parquet (.parquet), Arrow (.arrow), text (.txt), and .gz or "
    ".zst of these are read"
)
#: Bytes inspected at the beginning of a file.
HEAD_BYTES = 64 << 10

_BOM = b"\xef\xbb\xbf"
_SUFFIX_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
# Control bytes. A few may be noise in a row; many mean that the file is not text.
_CONTROL = bytes(code for code in range(0x20) if code not in b"\t\n\r\x0b\x0c\x1b")
_CONTROL_SHARE = 0.1
_SPACE = b" \t\r\n"
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR = re.compile(rb"[^,\[\]{}\"]+")
# Columns whose value is a list: an object with such a list is a row, not a container of rows.
_LISTS_OF_OBJECTS = {
    *("messages", "conversations", "conversation", "dialogue", "dialog", "turns"),
    *("tools", "functions", "prompt", "completion", "chosen", "rejected", "segments"),
}
_LISTS_OF_OTHERS = {"history", "input_ids", "labels", "attention_mask"}


@dataclass(frozen=True)
class Layout:
    """Layout of the rows of a text file.

    Args:
        kind: Kind of the file.
        start: Byte offset of the first character after any byte order mark; for an array inside an object, of its
            bracket.
        delimiter: Delimiter of a CSV; empty for other kinds.
        nested: True if the array is a value of an object, which may go on after it.
        line: Line of ``start``, from 1.
    """

    kind: Kind
    start: int = 0
    delimiter: str = ""
    nested: bool = False
    line: int = 1


def recognize(suffix: str, head: bytes, shown: str) -> Layout:
    """Recognize the layout of a file that begins with ``head`` and whose extension is ``suffix``.

    Raises:
        UserError: If it is not text, or not of a supported kind.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{shown} is UTF-16 text.", "Save it as UTF-8.")
    if len(head.translate(None, _CONTROL)) < len(head) * (1 - _CONTROL_SHARE):
        raise UserError(f"{shown} is not text.", f"Give a text file: {READ}.")
    start = len(_BOM) if head.startswith(_BOM) else 0
    known = _SUFFIX_KINDS.get(suffix)
    if known == "csv":
        return Layout("csv", start, _delimiter(suffix, head[start:]))
    if known == "text":
        return Layout("text", start)
    text = head[start:].lstrip()
    if known is None and text[:1] not in (b"{", b"["):
        raise UserError(f"{shown} is of a kind that is not read.", f"{READ}.")
    if text[:1] == b"{" and suffix not in (".jsonl", ".ndjson"):
        inner = _first_array(head, start)
        if inner is not None and head[inner + 1 :].lstrip(_SPACE)[:1] == b"{":
            return Layout("json", inner, nested=True, line=head.count(b"\n", 0, inner) + 1)
    if text.partition(b"\n")[0].strip() == b"{":
        raise UserError(
            f"{shown} holds one JSON object spread over several lines.",
            "Write one object a line, or put the objects between [ and ] with commas.",
        )
    return Layout("json" if text[:1] == b"[" and _is_array(text) else "jsonl", start)


def is_column_arrays(head: bytes) -> bool:
    """True if a JSON file is an object of arrays, one per column: ``{"question": [...], "answer": [...]}``."""
    start = len(_BOM) if head.startswith(_BOM) else 0
    inner = _first_array(head, start)
    if inner is None or b"," in _STRING.sub(b"", head[start:inner]):
        return False
    first = head[inner + 1 :].lstrip(_SPACE)[:1]
    return first not in (b"", b"{", b"]")


def _first_array(head: bytes, start: int) -> int | None:
    """Offset of the first array among the values of the file's object; None if the file holds rows instead.

    Objects on lines of their own are rows, and so is an object whose lists are columns of a row.
    """
    position = start + len(head[start:]) - len(head[start:].lstrip(_SPACE))
    if head[position : position + 1] != b"{" or _is_object_a_line(head[position:]):
        return None
    position += 1
    while (key := _STRING.match(head, position := _skip(head, position, b","))) is not None:
        position = _skip(head, key.end(), b":")
        if head[position : position + 1] == b"[":
            name = key.group()[1:-1].decode("utf-8", "replace")
            own = _LISTS_OF_OBJECTS if head[position + 1 :].lstrip(_SPACE)[:1] == b"{" else _LISTS_OF_OTHERS
            return None if name in own else position
        value = _STRING.match(head, position) or _SCALAR.match(head, position)
        if value is None:
            return None
        position = value.end()
    return None


def _skip(head: bytes, position: int, mark: bytes) -> int:
    """Position after spaces and at most one ``mark``."""
    size = len(head)
    while position < size and head[position] in _SPACE + mark:
        position += 1
    return position


def _is_object_a_line(text: bytes) -> bool:
    """True if the first line is a whole object and another object follows."""
    line, _, rest = text.partition(b"\n")
    if rest.lstrip(_SPACE)[:1] != b"{":
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        # Damaged, or longer than the inspected head: the object after it decides.
        return True


def _is_array(text: bytes) -> bool:
    """True if a leading bracket opens an array of rows, rather than a line of JSON Lines that is itself an array."""
    line, _, rest = text.partition(b"\n")
    if not rest.strip():
        return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _delimiter(suffix: str, head: bytes) -> str:
    if suffix == ".tsv":
        return "\t"
    header = head.lstrip().partition(b"\n")[0]
    # Spreadsheets write semicolons where the comma is the decimal mark.
    return next((mark for mark in (",", ";", "\t") if mark.encode() in header), ",")
