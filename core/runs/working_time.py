"""Working time of a run: the time that its workers have spent on it, read from the event record without decoding it."""

from __future__ import annotations

import io
import re
from pathlib import Path

from core.small_files import open_regular

_NUMBER = rb"(\d{1,16}(?:\.\d*)?(?:[eE][+-]?\d{1,2})?)"
_TIME = re.compile(rb'\{"t": ?' + _NUMBER)
_PAUSED = re.compile(rb'"paused_seconds": ?' + _NUMBER)
#: The first report of a worker.
_START = (b'"phase"', b'"importing"')


def working_seconds(events: Path) -> float | None:
    """Seconds from the first to the last event, without pauses and without the time between two workers.

    Returns:
        None if the record cannot be read, or has no event.
    """
    first: float | None = None
    idle, before, was_start = 0.0, b"", False
    try:
        with io.BufferedReader(open_regular(events), 1 << 16) as file:
            for line in file:
                if first is None:
                    first = _time(line)
                # A worker reports its first phase again where that has got further.
                is_start = all(word in line for word in _START)
                if is_start and not was_start and before:
                    idle += max((_time(line) or 0.0) - (_time(before) or 0.0), 0.0)
                if (paused := _PAUSED.search(line)) is not None:
                    idle += float(paused[1])
                if line.endswith(b"\n"):
                    before, was_start = line, is_start
    except OSError:
        return None
    last = _time(before)
    return max(last - first - idle, 0.0) if first is not None and last is not None else None


def _time(line: bytes) -> float | None:
    found = _TIME.match(line)
    return float(found[1]) if found is not None else None
