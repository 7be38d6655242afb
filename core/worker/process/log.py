"""The worker's log: standard error, which the launcher has pointed at ``worker.log``."""

from __future__ import annotations

import contextlib
import sys
import traceback

from core.redact import RedactedStream, redact, redact_streams

__all__ = ["RedactedStream", "log", "log_exception", "redact_streams"]


def log(text: str) -> None:
    """Write a line, secrets in it replaced."""
    # The log may be on a full disk, or its reader gone: neither is a reason to end the training.
    with contextlib.suppress(OSError):
        print(redact(text), file=sys.stderr, flush=True)


def log_exception() -> None:
    """Write the traceback of the exception that is being handled."""
    log(traceback.format_exc())
