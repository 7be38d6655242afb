"""The JSON files that describe a model, read up to a size and refused with a sentence where they are damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.small_files import read_small

#: The largest ``config.json`` and its like; those of real models have kilobytes.
DESCRIPTION_LIMIT = 16 << 20
#: The largest ``tokenizer.json``; those of 262,144 tokens have 34 MB.
TOKENIZER_LIMIT = 256 << 20


def read_description(path: Path, limit: int = DESCRIPTION_LIMIT) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file.

    Args:
        path: The file.
        limit: Most bytes that it may have.

    Raises:
        UserError: If it is there and cannot be read, is too large, or holds no JSON object.
    """
    try:
        raw = read_small(path, limit)
    except (FileNotFoundError, NotADirectoryError):
        # A link whose target is not there, as an interrupted download of a hub's cache leaves it, is no file either.
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.", _hint(error)) from error
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if is_lfs_pointer(raw):
            raise lfs_pointer(path) from error
        raise UserError(f"{path} is damaged: it is not JSON.", "Copy it again from where the model is from.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object.", "Copy it again from where the model is from.")
    return data


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins so stands for one that Git LFS has not fetched."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")


def lfs_pointer(path: Path) -> UserError:
    """The sentence for a pointer of Git LFS in place of a file."""
    return UserError(
        f"{path} is a Git LFS pointer, not the file itself.",
        f"Run 'git lfs pull' in {path.parent}, or fetch the model with 'localtune-tui fetch'.",
    )


def unreadable(path: Path, error: OSError) -> UserError:
    """The sentence for a file or directory that the system does not let us read."""
    return UserError(f"{path} cannot be read: {error.strerror or os.strerror(error.errno or 0)}.", _hint(error))


def _hint(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "Check its permissions."
    return "Copy it again from where the model is from."
