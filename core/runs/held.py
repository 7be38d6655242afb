"""Checkpoints in use: held by a shared lock of the kernel while they are read, so that a live run keeps them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def held_checkpoint(checkpoint: Path | None) -> Iterator[None]:
    """Inside, the run does not rotate a checkpoint out. A process that is killed lets it go.

    Args:
        checkpoint: Its directory; None for what is no checkpoint, such as the result of a run.
    """
    with contextlib.ExitStack() as held:
        if checkpoint is not None:
            # One that is gone already, or a file system without locks: what reads it tells.
            with contextlib.suppress(OSError):
                descriptor = os.open(checkpoint / "manifest.json", _FLAGS)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def is_held(checkpoint: Path) -> bool:
    """Whether any process is inside :func:`held_checkpoint`; False where that cannot be told."""
    try:
        descriptor = os.open(checkpoint / "manifest.json", _FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
