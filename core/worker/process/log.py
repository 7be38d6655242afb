"""The worker's log: standard error, which the launcher redirects to ``worker.log``."""

from __future__ import annotations

import contextlib
import sys
import traceback

from core.redact import RedactedStream, redact, redact_streams

__all__ = ["RedactedStream", "log", "log_exception", "redact_streams"]


def log(text: str) -> None:
    """Write a line, with secrets replaced."""
    # A full disk or a closed reader must not end the training.
    with contextlib.suppress(OSError):
        print(redact(text), file=sys.stderr, flush=True)


def log_exception() -> None:
    """Write the traceback of the current exception."""
    log(traceback.format_exc())
