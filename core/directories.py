"""Directories made atomically, by one process at a time, and disk space for them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from core import paths
from core.atomic import fsync_dir, fsync_file
from core.errors import UserError
from core.text import one_line
from core.units import format_bytes

#: A progress report: the activity, the amount done, and the total; the numbers are None where they are unknown.
Progress = Callable[[str, "int | None", "int | None"], None]

_MAKE_ROOM = "Make room, or set LOCALTUNE_HOME to a larger disk."
#: Endings of directories that an attempt has left; the second one is of earlier versions.
_UNFINISHED = (".tmp", ".partial")


@contextlib.contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A directory that is whole or not there: filled under a hidden name, fsynced, renamed, its parent fsynced.

    The caller makes sure that nobody else makes it meanwhile; leftovers of earlier attempts are removed first.

    Args:
        target: Its path; an existing file or directory is replaced.

    Yields:
        The directory to fill.

    Raises:
        OSError: If it cannot be written; nothing of it remains then.
    """
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if leftover.suffix in _UNFINISHED:
            remove_tree(leftover)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(mode=paths.DIRECTORY_MODE)
        yield temporary
        _settle(temporary)
        if os.path.lexists(target):
            former = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
            os.replace(target, former)
            os.replace(temporary, target)
            remove_tree(former)
        else:
            os.replace(temporary, target)
        fsync_dir(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_tree(path: Path) -> None:
    """Remove a directory with everything in it, as far as possible; of a link the link alone, not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A new directory that is whole or not there: as :func:`whole_directory`, but nothing is ever replaced.

    Args:
        target: Its path. Its parent must exist.

    Yields:
        The directory to fill.

    Raises:
        UserError: If something is there already, or is being made there by another process.
        OSError: If it cannot be written; nothing of it remains then.
    """
    with hidden_directory(target) as temporary:
        yield temporary
        put_into_place(temporary, target)


@contextlib.contextmanager
def hidden_directory(target: Path) -> Iterator[Path]:
    """A hidden directory beside a path that is to be made; removed in the end.

    It is locked meanwhile. Without a lock it is a leftover of a killed attempt, and the next attempt removes it.

    Raises:
        UserError: If something is at the path already, or is being made there by another process.
        OSError: If it cannot be made.
    """
    refuse_existing(target)
    for leftover in sorted(target.parent.glob(f".{glob.escape(target.name)}.*.tmp")):
        if not remove_abandoned(leftover):
            raise UserError(f"Another process is making {target}.", "Wait for its end, or name another place.")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(mode=paths.DIRECTORY_MODE)
    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_into_place(directory: Path, target: Path) -> None:
    """Make a directory private and durable, and move it to its place on the same disk.

    Raises:
        UserError: If something is there already.
        OSError: If it cannot be moved.
    """
    _settle(directory)
    refuse_existing(target)
    # Of directories only an empty one would be replaced.
    os.rename(directory, target)
    fsync_dir(target.parent)


def refuse_existing(target: Path) -> None:
    """Refuse an existing path.

    Raises:
        UserError: If it exists.
    """
    if os.path.lexists(target):
        raise UserError(f"{target} is there already, and nothing is overwritten.", "Name another place, or remove it.")


def remove_abandoned(directory: Path) -> bool:
    """Remove a leftover directory of :func:`new_directory`.

    Returns:
        True if it is gone; False if a process still fills it.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return not os.path.lexists(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except OSError:  # held; or a file system without locks, where nothing is known
        return False
    finally:
        os.close(descriptor)
    return not os.path.lexists(directory)


def _settle(directory: Path) -> None:
    """Make files private and durable."""
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(paths.FILE_MODE)
            fsync_file(path)
        else:
            fsync_dir(path)
    fsync_dir(directory)


def disk_error(directory: Path, error: OSError) -> UserError:
    """The error for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk that holds {directory} is full.", _MAKE_ROOM)
    if error.errno == errno.ENOENT and not directory.is_dir():
        return UserError(f"There is no directory {directory}.", "Make it, or name another place.")
    if error.errno == errno.ENOENT:
        missing = one_line(str(error.filename or "a file that it needs"))
        message = f"{directory} cannot be written: {missing} is not there."
        return UserError(message, "If something has removed it meanwhile, do it again.")
    return UserError(
        f"{directory} cannot be written: {error.strerror or error}.",
        "Fix its permissions, or set LOCALTUNE_HOME to a directory that you can write to.",
    )


def free_bytes(path: Path | None = None) -> int | None:
    """Free bytes of the disk that a path is on, or will be; the home's by default. None if unknown."""
    try:
        return shutil.disk_usage(paths.existing_parent(path or paths.home())).free
    except OSError:
        return None


def require_space(directory: Path, needed: int, what: str, hint: str = _MAKE_ROOM) -> None:
    """Refuse to start when the disk has too little space.

    Args:
        directory: Any directory on the disk.
        needed: Bytes.
        what: The subject of the message: ``the download``.
        hint: The hint of the error.

    Raises:
        UserError: If fewer bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        message = f"The disk of {directory} has {format_bytes(free)} free, and {what} needs {format_bytes(needed)}."
        raise UserError(message, hint)


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
