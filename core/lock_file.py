"""Lock files, held by one process at a time. The kernel releases a lock when its holder ends, in any way.

The file is empty and never removed: a process that has it open would hold a lock on a file that others no longer find.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from core import paths
from core.errors import UserError

_NO_LOCKS_HERE = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


def open_lock_file(path: Path) -> int:
    """Open a lock file, created private if missing; a link is not followed.

    Returns:
        A descriptor, which children of the process do not get.

    Raises:
        UserError: If it cannot be made.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, paths.FILE_MODE)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.", "Make room or fix its permissions.") from error


def try_lock_file(path: Path, *, needs_locks: bool) -> int | None:
    """Try to take the lock of a file, without waiting.

    Args:
        path: The lock file.
        needs_locks: Refuse a file system without locks; otherwise the open file counts as the lock there.

    Returns:
        The descriptor that holds the lock for as long as it is open; None where another process has it.

    Raises:
        UserError: If the file cannot be made or locked.
    """
    descriptor = open_lock_file(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if needs_locks or error.errno not in _NO_LOCKS_HERE:
            os.close(descriptor)
            raise UserError(
                f"{path} cannot be locked: {error.strerror}.", "Put LOCALTUNE_HOME on a file system that has locks."
            ) from error
    return descriptor
