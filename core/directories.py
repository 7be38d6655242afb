"""Directories made atomically, by one process at a time, and disk space for them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from core import paths
from core.atomic import fsync_dir
from core.errors import UserError

#: A progress report: the activity, the amount done, and the total; the numbers are None where they are unknown.
Progress = Callable[[str, "int | None", "int | None"], None]


@contextlib.contextmanager
def partial_directory(target: Path) -> Iterator[Path]:
    """A temporary directory for building ``target``: renamed to it at the end, removed after a failure.

    The caller holds the lock of ``target``, so leftovers of earlier attempts are removed first.

    Raises:
        UserError: If the disk is full or cannot be written.
    """
    for leftover in target.parent.glob(f".{target.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            yield partial
            fsync_dir(partial)
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
            fsync_dir(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise disk_error(target.parent, error) from error


def disk_error(directory: Path, error: OSError) -> UserError:
    """The error for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"The disk that holds {directory} is full.", "Make room, or set LOCALTUNE_HOME to a larger disk."
        )
    return UserError(
        f"{directory} cannot be written: {error.strerror or error}.",
        "Mend its permissions, or set LOCALTUNE_HOME to a directory that you can write to.",
    )


def require_space(directory: Path, needed: int) -> None:
    """Refuse to start when the disk has too little space.

    Args:
        directory: Any directory on the disk.
        needed: Bytes.

    Raises:
        UserError: If fewer bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"The disk that holds {directory} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed.",
            "Make room, or set LOCALTUNE_HOME to a larger disk.",
        )


@contextlib.contextmanager
def exclusive_lock(target: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a directory while it is being made; the kernel releases it when its holder dies.

    Raises:
        UserError: If the lock file cannot be made.
    """
    lock = target.parent / f".{target.name}.lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, paths.FILE_MODE)
    except OSError as error:
        raise disk_error(target.parent, error) from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(f"waiting for another process that prepares {target.name}", None, None)
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
