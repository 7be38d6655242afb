"""Changes of rows that a model has not learned: an answer corrected in a copy of the file, or a row left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from core.atomic import write_atomic
from core.data.exclusion import Exclusion, entries_of
from core.errors import UserError
from core.path_kind import JSON_LINES_SUFFIXES
from core.text import is_unicode, one_line

#: End of the name of a corrected copy, before its suffix.
_CORRECTED = "-corrected"


def toggle_left_out(entries: Sequence[str], file: str, line: int, name: str) -> list[str]:
    """``data.exclude`` with a row added, or taken out again if an entry names it; a range is cut around it.

    Args:
        entries: The option.
        file: Path of the row's file.
        line: Its line.
        name: Name of the file in a new entry.

    Raises:
        UserError: If an entry is none.
    """
    if not Exclusion(entries).names(file, line):
        return [*entries, *entries_of([(name, line)])]
    found: list[str] = []
    for entry in entries:
        if not Exclusion([entry]).names(file, line):
            found.append(entry)
            continue
        written, _, span = entry.rpartition(":")
        first, _, last = span.partition("-")
        for low, high in ((int(first), line - 1), (line + 1, int(last or first))):
            if low <= high:
                found.append(f"{written}:{low}" if low == high else f"{written}:{low}-{high}")
    return found


def moved_to(entries: Sequence[str], file: Path, copy: Path) -> list[str]:
    """``data.exclude`` with the rows of a file named in its copy."""
    found = []
    for entry in entries:
        name, _, span = entry.rpartition(":")
        parts = PurePath(name).parts
        found.append(f"{copy.name}:{span}" if parts and file.parts[-len(parts) :] == parts else entry)
    return found


def copy_of(path: Path) -> Path:
    """Default path of a file's corrected copy, beside it; the path itself for such a copy."""
    return path if path.stem.endswith(_CORRECTED) else path.with_name(f"{path.stem}{_CORRECTED}{path.suffix}")


def write_correction(file: Path, copy: Path, line: int, answer: str, corrected: str) -> None:
    """Replace the answer of a row in a copy of a JSON Lines file. Earlier corrections in the copy stay.

    Args:
        file: The file with the row; it is changed only if it is also the copy.
        copy: The copy; created if missing.
        line: Line of the row, from 1.
        answer: The row's answer, as the row has it.
        corrected: The new answer.

    Raises:
        UserError: If the file is of another kind, the answer is not a text of its own in the row, ``copy`` is no copy
            of the file, or it cannot be written.
    """
    name, target = one_line(file.name, 120), one_line(str(copy), 200)
    if {file.suffix.lower(), copy.suffix.lower()} - set(JSON_LINES_SUFFIXES):
        raise UserError(
            f"Rows are corrected in JSON Lines files, and {name} or its copy is of another kind.",
            "Correct it in the program that wrote it, or leave the row out.",
        )
    try:
        lines = file.read_bytes().split(b"\n")
        present = copy.read_bytes().split(b"\n") if copy.exists() else list(lines)
        if len(present) != len(lines) or not 0 < line <= len(lines):
            raise UserError(f"{target} is no copy of {name}: it has another number of lines.", "Name another file.")
        present[line - 1] = _with_answer(lines[line - 1], answer, corrected)
        write_atomic(copy, b"\n".join(present))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.", "Name another file.") from error


def _with_answer(row: bytes, answer: str, corrected: str) -> bytes:
    """A line of JSON with another text in place of the last one that equals the answer."""
    try:
        data = json.loads(row)
    except (ValueError, RecursionError):
        data = None
    found: tuple[Any, Any] | None = None
    # Not recursive, as rows may be nested deeper than Python's stack.
    stack = [data]
    while stack:
        item = stack.pop()
        pairs = list(item.items() if isinstance(item, dict) else enumerate(item if isinstance(item, list) else ()))
        for key, value in pairs:
            if isinstance(value, str) and value == answer:
                found = item, key
        stack += [value for _, value in reversed(pairs) if isinstance(value, (dict, list))]
    if found is None:
        raise UserError(
            "The row's answer is not a text of its own in the file, so it cannot be replaced here.",
            "Correct it in an editor, or leave the row out.",
        )
    holder, key = found
    holder[key] = corrected
    text = json.dumps(data, ensure_ascii=False)
    # A lone surrogate is kept as a JSON escape: the file stays UTF-8.
    whole = text if is_unicode(text) else json.dumps(data)
    return whole.encode() + (b"\r" if row.endswith(b"\r") else b"")
