"""Good answers as rows of a dataset: appended to a file of the user's, which is remembered."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from core import paths
from core.atomic import fsync_dir, write_atomic
from core.errors import UserError
from core.path_kind import JSON_LINES_SUFFIXES
from core.paths import working_directory
from core.small_files import read_json
from core.text import json_line

#: Most bytes of the first row that are read.
_FIRST_LIMIT = 1 << 20
_SETTINGS_LIMIT = 64 << 10


def append_row(path: Path, messages: Sequence[dict[str, str]]) -> None:
    """Append a conversation to a file of rows, ``{"messages": […]}`` on a line, and make it durable.

    Existing rows never change: a partial write is rolled back.

    Args:
        path: The file; created if missing, for the user alone.
        messages: ``role`` and ``content`` each, the last one the assistant's.

    Raises:
        UserError: If it is not a file of such rows, or cannot be written.
    """
    if path.suffix.lower() not in JSON_LINES_SUFFIXES:
        wanted = " or ".join(JSON_LINES_SUFFIXES)
        raise UserError(f"{path} is not a JSON Lines file.", f"Name one that ends in {wanted}; it is created.")
    try:
        _append(path, json_line({"messages": list(messages)}).encode() + b"\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}.", "Name another file, or make room."
        ) from error


def _append(path: Path, row: bytes) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    is_new = not path.exists()
    descriptor = os.open(path, flags, paths.FILE_MODE)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        # Two apps may append to the same file.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size:
            _check_first(path, os.pread(descriptor, _FIRST_LIMIT, 0))
            if os.pread(descriptor, 1, size - 1) != b"\n":
                row = b"\n" + row
        try:
            written = 0
            while written < len(row):
                written += os.write(descriptor, row[written:])
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        fsync_dir(path.parent)


def _check_first(path: Path, beginning: bytes) -> None:
    """Refuse a file with rows of another kind."""
    first, newline, _ = beginning.lstrip(b"\xef\xbb\xbf \r\n\t").partition(b"\n")
    if not first or (not newline and len(beginning) == _FIRST_LIMIT):
        return
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or "messages" not in row:
        raise UserError(
            f"{path} has rows of another kind: the first one has no messages.",
            "Name another file; it is created if it does not exist.",
        )


def remembered_file() -> Path | None:
    """The file that answers were appended to last; None before the first one."""
    with suppress(OSError, ValueError, UserError):
        content = read_json(_memory(), _SETTINGS_LIMIT)
        if isinstance(content, dict) and isinstance(name := content.get("file"), str) and name and "\0" not in name:
            return Path(name)
    return None


def remember_file(path: Path) -> None:
    """Remember the file for the next answer; no effect if that cannot be written."""
    with suppress(OSError, UserError):
        paths.make_private_dir(paths.home())
        write_atomic(_memory(), json.dumps({"file": str(working_directory() / path)}) + "\n", durable=False)


def _memory() -> Path:
    return paths.home() / "answers.json"
