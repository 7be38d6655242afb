"""The worker's log: standard error, which the launcher has pointed at ``worker.log``."""

from __future__ import annotations

import contextlib
import sys
import traceback


def log(text: str) -> None:
    """Write a line."""
    # The log may be on a full disk, or its reader gone: neither is a reason to end the training.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def log_exception() -> None:
    """Write the traceback of the exception that is being handled."""
    log(traceback.format_exc())
