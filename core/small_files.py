"""Safe reading of foreign files: regular files only, and small ones, such as templates and settings, up to a size; JSON
with numbers that can be computed with.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from io import FileIO
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.text import one_line

#: The largest magnitude of an integer in JSON, as 64 bits hold it.
INTEGER_LIMIT = 1 << 63

_SPECIAL = ((stat.S_ISFIFO, "it is a named pipe"), (stat.S_ISCHR, "it is a device"), (stat.S_ISBLK, "it is a device"))


def open_regular(path: Path | str) -> FileIO:
    """Open a regular file for reading, without blocking, as opening a named pipe would.

    Raises:
        OSError: If it is not a regular file or cannot be opened; ``strerror`` has the reason in words.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for is_kind, what in _SPECIAL:
            if is_kind(mode):
                raise OSError(None, what, str(path))
        return FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def is_lfs_pointer(start: bytes) -> bool:
    """True if ``start`` is the beginning of a Git LFS pointer."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")


def lfs_pointer(path: Path, *, otherwise: str = "") -> UserError:
    """The error for a Git LFS pointer in place of a file; ``otherwise`` is another way to get the file."""
    return UserError(
        f"{one_line(str(path))} is a Git LFS pointer, not the file itself.",
        f"Run 'git lfs pull' in {one_line(str(path.parent))}{otherwise}.",
    )


def hash_file(path: Path | str) -> str:
    """SHA-256 of a regular file, in hexadecimal.

    Raises:
        OSError: As :func:`open_regular`.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_small(path: Path | str, limit: int) -> bytes:
    """Read the bytes of a regular file, without blocking, and never more than the limit.

    Args:
        path: The file.
        limit: The most bytes allowed.

    Raises:
        OSError: If it is not a regular file, too large or cannot be read; ``strerror`` has the reason in words.
    """
    with open_regular(path) as file:
        pieces, size = [], 0
        # Generated files, as in /proc, have no size beforehand.
        while piece := file.read(limit + 1 - size):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise OSError(None, f"it is larger than {_size(limit)}", str(path))
    return b"".join(pieces)


def read_json(path: Path | str, limit: int, *, finite: bool = True) -> Any:
    """Read a small file of JSON (:func:`read_small`, :func:`parse_json`).

    Args:
        path: The file.
        limit: The most bytes allowed.
        finite: Whether NaN and infinities are refused.

    Raises:
        OSError: If it is not a regular file, too large or cannot be read.
        ValueError: If it is not such JSON.
    """
    return parse_json(read_small(path, limit), finite=finite)


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Parse JSON within the limits of other parsers: Python's own accepts integers of any length, and NaN.

    Args:
        text: The JSON; bytes are UTF-8, with or without a byte order mark.
        finite: Whether NaN and infinities are refused.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, or has an integer beyond ±2^63; the message says which.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        if finite:
            return json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _integer(text: str) -> int:
    # Digits are counted first, as reading many of them takes long.
    if len(text) > 20 or abs(value := int(text)) > INTEGER_LIMIT:
        raise ValueError("it has an integer of more than 64 bits")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("it has a number that is not finite")
    return value


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
