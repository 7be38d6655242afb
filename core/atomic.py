"""Atomic and durable file writes: a reader finds the old file or the new one, never half of it."""

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
    """Replace a file atomically: written next to it, fsynced, renamed over it, the directory fsynced.

    An existing path that is not a file (a device, a pipe, a directory), or a link to one, is never replaced.

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
    # A rename checks nothing: root would replace /dev/null by a file.
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket", str(path))


#: Error numbers for a lack of room for another file.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def overwrite(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Overwrite a file in place, for a disk without room for a second file next to it.

    The rest of a longer old content is filled with blanks, so the format must ignore blanks at the end. The file keeps
    its old content if the new one does not fit. A file with a second name is refused, as that one would change too.

    Args:
        path: The file, which must exist.
        data: The whole new content.
        durable: Whether to fsync.

    Raises:
        OSError: If it cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EPERM, "it is not a plain file with one name", str(path))
        before = os.pread(descriptor, 1 << 20, 0)
        # In one write, so that a reader finds the one or the other.
        written = os.pwrite(descriptor, data.ljust(len(before)), 0)
        if written < len(data):
            os.pwrite(descriptor, before, 0)
            os.ftruncate(descriptor, len(before))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
