"""Files beneath an untrusted directory, such as a foreign run: opened beneath it, or not at all.

Each part of a name is opened by itself, relative to the part before, and no part may be a link, the last one included:
the guarantee of openat2(2) with ``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS``, on every kernel, and in containers that
refuse that call. Only a plain file with one name is opened, as bytes written to a hard link, a pipe or a device
arrive elsewhere. To cut a file, pass its descriptor to ``os.ftruncate``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from core.atomic import write_atomic
from core.paths import DIRECTORY_MODE, FILE_MODE

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = (
    (stat.S_ISLNK, "it is a link"),
    (stat.S_ISFIFO, "it is a named pipe"),
    (stat.S_ISCHR, "it is a device"),
    (stat.S_ISBLK, "it is a device"),
    (stat.S_ISSOCK, "it is a socket"),
)


def unsafe_kind(status: os.stat_result) -> str | None:
    """The reason in words why a file must not be read or written; None for a directory, or a plain file with one name.

    Args:
        status: Status of the file itself; of a link, not of its target.
    """
    for is_kind, words in _KINDS:
        if is_kind(status.st_mode):
            return words
    is_shared = stat.S_ISREG(status.st_mode) and status.st_nlink > 1
    return "it is a hard link, another name of a file that may be elsewhere" if is_shared else None


def open_beneath(root: Path, name: str, flags: int) -> int:
    """Open a plain file beneath a directory, without blocking.

    Args:
        root: The directory, which may be reached through links.
        name: The file, relative to it: ``tracking/wandb.log``.
        flags: Flags of ``os.open``; not ``O_TRUNC``, which cuts a file before it is checked. A new file is private.

    Returns:
        The descriptor, which children of the process do not get.

    Raises:
        OSError: If it cannot be opened, or a part of the name is a link or something else that is no plain file or
            directory; ``strerror`` has the reason in words, ``filename`` the path.
        ValueError: If the name leads out of the directory.
    """
    *directories, last = _parts(name)
    with _opened_directory(root, directories) as parent:
        return _open_file(parent, last, flags, root / name)


def _open_file(parent: int, name: str, flags: int, path: Path) -> int:
    # Before it is opened, as opening a device can do something.
    with contextlib.suppress(FileNotFoundError):
        _refuse(os.stat(name, dir_fd=parent, follow_symlinks=False), path)
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, FILE_MODE, dir_fd=parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        _refuse(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if (reason := unsafe_kind(status)) is not None:
        raise OSError(errno.EPERM, reason, str(path))


@contextlib.contextmanager
def directory_beneath(root: Path, name: str, *, make: bool = False) -> Iterator[Path]:
    """A directory beneath another directory, held open.

    Args:
        root: The upper directory, which may be reached through links.
        name: The directory, relative to it.
        make: Make it, private, if it is missing.

    Yields:
        A path that is valid inside the ``with`` block and in this process, and stays the same directory even if its
        name is taken by another one.

    Raises:
        OSError: If it cannot be opened or made, or a part of the name is a link; ``strerror`` has the reason in words.
        ValueError: If the name leads out of the upper directory.
    """
    with _opened_directory(root, _parts(name), make=make) as descriptor:
        yield Path(f"/proc/self/fd/{descriptor}")


def write_beneath(root: Path, name: str, data: str | bytes, *, durable: bool = True) -> None:
    """Replace a file beneath a directory atomically, as :func:`core.atomic.write_atomic` does.

    Args:
        root: The directory, which may be reached through links.
        name: The file, relative to it. Its own directory must exist.
        data: The whole new content.
        durable: Whether to fsync.

    Raises:
        OSError: If it cannot be written, or a part of the name is a link.
        ValueError: If the name leads out of the directory.
    """
    *directories, last = _parts(name)
    with _opened_directory(root, directories) as parent:
        write_atomic(Path(f"/proc/self/fd/{parent}") / last, data, durable=durable)


@contextlib.contextmanager
def _opened_directory(root: Path, parts: list[str], *, make: bool = False) -> Iterator[int]:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = root
    try:
        for part in parts:
            path = path / part
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, DIRECTORY_MODE, dir_fd=descriptor)
            inner = _inner_directory(descriptor, part, path)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _inner_directory(descriptor: int, part: str, path: Path) -> int:
    try:
        return os.open(part, _DIRECTORY, dir_fd=descriptor)
    except NotADirectoryError:
        status = os.stat(part, dir_fd=descriptor, follow_symlinks=False)
        reason = "it is a link" if stat.S_ISLNK(status.st_mode) else "it is not a directory"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(path)) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name!r} leads out of its directory")
    return parts
