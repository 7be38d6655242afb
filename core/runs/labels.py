"""Labels of a run: what its user calls it and thinks of it, in ``labels.json`` of its directory.

The run's id and directory never change; a display name stands beside them. A run directory may come from anywhere, so
labels are read like any other foreign text: up to a size, cut, and safe to show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.atomic import write_atomic
from core.errors import UserError
from core.small_files import read_json
from core.text import one_line

FILE_NAME = "labels.json"
#: Format of the file; a reader ignores keys that it does not know.
VERSION = 1
#: Largest file in bytes, and most characters of a display name, a tag and a note.
FILE_LIMIT, NAME_LIMIT, TAG_LIMIT, NOTE_LIMIT = 32 << 10, 80, 32, 2000
#: Most tags of a run.
MOST_TAGS = 16
#: A tag is one word, so that several fit on a line and a filter can name one.
_TAG = re.compile(r"[^\s,#]{1,32}")


@dataclass(frozen=True)
class Labels:
    """The labels of a run; all of them may be empty."""

    name: str = ""
    """The display name, on one line."""
    tags: tuple[str, ...] = ()
    """Words, each once, in the order in which they were given."""
    note: str = ""
    """The note, on one line."""
    archived: bool = False
    """Whether lists leave the run out unless they are asked for all."""


#: The labels of a run that nobody has labeled.
NO_LABELS = Labels()


def labels_path(directory: Path) -> Path:
    """The file with the labels of a run directory."""
    return directory / FILE_NAME


def read_labels(directory: Path) -> Labels:
    """The labels of a run directory; empty ones where there is no file, or it cannot be read."""
    try:
        data: Any = read_json(labels_path(directory), FILE_LIMIT)
    except (OSError, ValueError):
        return NO_LABELS
    if not isinstance(data, dict):
        return NO_LABELS
    tags = data.get("tags")
    words = [one_line(tag, TAG_LIMIT) for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return Labels(
        name=_text(data.get("name"), NAME_LIMIT),
        tags=tuple(dict.fromkeys(word for word in words if _TAG.fullmatch(word)))[:MOST_TAGS],
        note=_text(data.get("note"), NOTE_LIMIT),
        archived=data.get("archived") is True,
    )


def write_labels(directory: Path, labels: Labels) -> None:
    """Replace the labels of a run directory; no file is left where all of them are empty.

    Raises:
        UserError: If the file cannot be written.
    """
    path = labels_path(directory)
    fields = {"name": labels.name, "tags": list(labels.tags), "note": labels.note, "archived": labels.archived}
    try:
        if labels == NO_LABELS:
            with suppress(FileNotFoundError):
                path.unlink()
        else:
            write_atomic(path, json.dumps({"version": VERSION, **fields}, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"{one_line(str(path), 200)} cannot be written: {error.strerror}.", "Make room or fix its permissions."
        ) from error


def clean_text(text: str, limit: int, what: str) -> str:
    """A display name or a note as a user typed it, on one line without blanks around it.

    Raises:
        UserError: If it is longer than ``limit`` characters, or is not text.
    """
    clean = one_line(text.strip(), len(text) + 1)
    if len(clean) > limit:
        raise UserError(f"The {what} has {len(clean)} characters.", f"{limit} are the most.")
    return clean


def clean_tags(texts: Iterable[str]) -> tuple[str, ...]:
    """Tags as a user typed them, separated by blanks or commas, with or without ``#``; each once.

    Raises:
        UserError: If one is too long, or there are too many.
    """
    words = [word.lstrip("#") for text in texts for word in re.split(r"[\s,]+", one_line(text, 4000))]
    found = tuple(dict.fromkeys(word for word in words if word))
    if wrong := next((word for word in found if not _TAG.fullmatch(word)), None):
        raise UserError(f"{one_line(wrong, 60)} is no tag.", f"A tag is one word of at most {TAG_LIMIT} characters.")
    if len(found) > MOST_TAGS:
        raise UserError(f"These are {len(found)} tags.", f"A run has {MOST_TAGS} at most.")
    return found


def _text(value: object, limit: int) -> str:
    return one_line(value.strip(), limit) if isinstance(value, str) else ""
