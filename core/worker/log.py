"""The worker's log: standard error, which the launcher has pointed at ``worker.log``."""

from __future__ import annotations

import contextlib
import sys
import traceback
from typing import Any, TextIO

from core.redact import redact


def log(text: str) -> None:
    """Write a line, secrets in it replaced."""
    # The log may be on a full disk, or its reader gone: neither is a reason to end the training.
    with contextlib.suppress(OSError):
        print(redact(text), file=sys.stderr, flush=True)


def log_exception() -> None:
    """Write the traceback of the exception that is being handled."""
    log(traceback.format_exc())


def redact_streams() -> None:
    """Put what libraries print, warn of and log through the same sieve.

    What native code writes to the file descriptor itself does not pass here.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))


class RedactedStream:
    """A text stream that replaces secrets; a line is written when it is complete, the rest when flushed.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        """Take text; complete lines go on."""
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            self._stream.write(redact(whole) + newline)
        return len(text)

    def flush(self) -> None:
        """Pass on what there is of an unfinished line too."""
        if self._line:
            self._stream.write(redact(self._line))
            self._line = ""
        self._stream.flush()

    def writelines(self, lines: Any) -> None:
        """Take several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Everything else is as the stream has it."""
        return getattr(self._stream, name)
