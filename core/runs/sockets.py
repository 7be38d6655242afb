"""Control socket paths: places that other users cannot tamper with."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from core.paths import DIRECTORY_MODE

#: Most bytes of a Unix socket's path, with some margin (the kernel's limit is 108).
SOCKET_PATH_LIMIT = 100
#: Glob pattern of sockets outside of run directories.
RUNTIME_SOCKETS = "localtune-*.sock"
#: Prefix of directories made for a socket when there is no other safe place.
_MADE_PREFIX = "localtune-run-"


def socket_name(directory: Path) -> str:
    """Name of a run's socket outside of its run directory."""
    # A hash of the whole path: two homes may have equal ids, and long ids equal beginnings.
    return RUNTIME_SOCKETS.replace("*", hashlib.sha256(os.fsencode(directory)).hexdigest()[:16])


def runtime_dir() -> Path:
    """Directory of sockets whose paths in their run directories would be too long; see :func:`is_private`."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/localtune-{os.getuid()}")  # noqa: S108


def is_private(directory: Path) -> bool:
    """Whether a directory is this user's, is not a link, and is closed to all other users."""
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    others = stat.S_IRWXG | stat.S_IRWXO
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & others


def _socket_places() -> list[Path]:
    """Parents for a private socket directory, best first; the path of a socket must be short."""
    return [Path(place) for place in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"])]  # noqa: S108


def private_socket_path(path: Path) -> Path:
    """The path itself, if no other user can tamper with it; else one in a new directory of this user's.

    In a world-writable directory, another user may have placed anything under a predictable name.

    Args:
        path: Preferred path of the socket, in a run directory or in the runtime directory; its parents are made.

    Raises:
        OSError: If no such directory can be made anywhere.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    is_safe = is_private(path.parent) if path.parent == runtime_dir() else _is_own(path.parent)
    if is_safe and len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return path
    error: OSError = PermissionError(errno.EACCES, "its directory is not this user's alone", str(path))
    name = socket_name(path.parent)
    for place in _socket_places():
        # The name of the directory ends with eight random characters.
        if len(os.fsencode(place / f"{_MADE_PREFIX}12345678" / name)) > SOCKET_PATH_LIMIT:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix=_MADE_PREFIX, dir=place)) / name
        except OSError as failure:
            error = failure
    raise error


def _is_own(directory: Path) -> bool:
    """Whether a directory is this user's and not writable by others."""
    try:
        status = directory.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def made_directories() -> list[Path]:
    """Directories made by :func:`private_socket_path` for this user that still exist."""
    return [place for parent in _socket_places() for place in parent.glob(f"{_MADE_PREFIX}*") if is_private(place)]
