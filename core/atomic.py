"""Files that are either the old one or the new one, never half of it."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from core.paths import FILE_MODE


def fsync_dir(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: str | bytes, *, mode: int = FILE_MODE, durable: bool = True) -> None:
    """Replace a file in one step: written beside it, fsynced, renamed over it, the directory fsynced.

    What is there and is no file (a device, a pipe, a directory), or a link to such a thing, is never replaced.

    Args:
        path: The file. Its directory must exist.
        data: The whole new content; text is written as UTF-8.
        mode: Permissions of the new file.
        durable: Whether to fsync; without it the replacement is atomic for readers, but not across a power cut.

    Raises:
        OSError: If it cannot be written; the old file is then untouched.
    """
    _refuse_special(path)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        fsync_dir(path.parent)


def _refuse_special(path: Path) -> None:
    # A rename asks nobody: root would put a file in the place of /dev/null.
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket", str(path))
