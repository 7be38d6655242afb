"""Answers of a process that carries out one request: lines of JSON on its standard output."""

from __future__ import annotations

import json
import threading
import time
from typing import IO, Any

#: Seconds between two reports of progress.
_INTERVAL = 0.1


class Answers:
    """Writes messages, progress at a limited rate; may be used from several threads.

    Args:
        stream: Where they go, see :func:`core.helper.private_output`.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._next = 0.0
        self._activity = ""

    def progress(self, activity: str, done: int | None = None, total: int | None = None) -> None:
        """Report progress: ``{"progress": {"activity", "done", "total"}}``. A new activity and a last count are always
        reported."""
        now = time.monotonic()
        if now >= self._next or activity != self._activity or (done is not None and done == total):
            self._next, self._activity = now + _INTERVAL, activity
            self.send({"progress": {"activity": activity, "done": done, "total": total}})

    def send(self, message: dict[str, Any]) -> None:
        """Write a message as one line.

        Raises:
            ValueError: If a number in it is not finite, which JSON has no word for.
        """
        line = json.dumps(message, allow_nan=False).encode("ascii") + b"\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()
