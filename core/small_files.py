"""Files that are read whole, such as templates and settings: regular ones, up to a size."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_SPECIAL = (
    (stat.S_ISFIFO, "it is a named pipe"),
    (stat.S_ISCHR, "it is a device"),
    (stat.S_ISBLK, "it is a device"),
)


def read_small(path: Path | str, limit: int) -> bytes:
    """The bytes of a regular file; never waits for one, and never reads more than the limit.

    Args:
        path: The file.
        limit: Most bytes that it may have.

    Raises:
        OSError: If it is no regular file, too large or cannot be read; ``strerror`` says why in words.
    """
    # Opening a pipe would wait for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        for is_kind, what in _SPECIAL:
            if is_kind(status.st_mode):
                raise OSError(None, what, str(path))
        pieces, size = [], 0
        # What a file system makes up, as /proc does, is as long as it turns out to be.
        while piece := file.read(limit + 1 - size):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise OSError(None, f"it is larger than {_size(limit)}", str(path))
    return b"".join(pieces)


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
