"""Events added to a run's record by a process that is not its worker, in one write each time."""

from __future__ import annotations

import os

from core.errors import UserError
from core.paths import FILE_MODE
from core.runs.events import Event, encode_event
from core.runs.store import Run


def append_events(run: Run, *events: Event) -> None:
    """Append events to ``events.jsonl``.

    Args:
        run: The run; its worker may be alive.
        *events: What is told.

    Raises:
        UserError: If they cannot be written.
    """
    lines = "".join(map(encode_event, events))
    try:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(run.events_path, flags, FILE_MODE), "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A line that a kill cut short is terminated first.
                lines = lines if file.read(1) == b"\n" else "\n" + lines
            file.write(lines.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"{run.events_path} cannot be written: {error.strerror}.", "Fix its permissions.") from error
