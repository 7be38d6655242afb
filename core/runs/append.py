"""Events added to a run's record by a process that is not its worker, in one write each time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import IO

from core.beneath import open_beneath
from core.errors import UserError
from core.runs.events import Event, encode_event
from core.runs.state import END_STATES, RunState
from core.runs.store import EVENTS_NAME, Run


def append_events(run: Run, *events: Event) -> None:
    """Append events to ``events.jsonl``.

    Args:
        run: The run; its worker may be alive.
        *events: What is told.

    Raises:
        UserError: If they cannot be written.
    """
    with _opened(run) as file:
        _write(file, events)


def append_while_open(run: Run, *events: Event) -> bool:
    """Append events, unless the end of the run is recorded, or is being recorded (:func:`closing_record`): nothing
    comes after it.

    Args:
        run: The run; its worker may be alive.
        *events: What is told.

    Returns:
        Whether they were added.

    Raises:
        UserError: If they cannot be written.
    """
    with _opened(run) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        state = RunState.read(run.state_path)
        if state is not None and state.state in END_STATES:
            return False
        _write(file, events)
        return True


@contextlib.contextmanager
def closing_record(descriptor: int) -> Iterator[None]:
    """Inside, a worker records the end of its run, and :func:`append_while_open` adds nothing.

    Args:
        descriptor: Of ``events.jsonl``.
    """
    # Without locks the end is recorded as well.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        # Also a process that was forked with it would keep it.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def _opened(run: Run) -> Iterator[IO[bytes]]:
    try:
        with os.fdopen(open_beneath(run.path, EVENTS_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+") as file:
            yield file
    except OSError as error:
        raise UserError(f"{run.events_path} cannot be written: {error.strerror}.", "Fix its permissions.") from error


def _write(file: IO[bytes], events: tuple[Event, ...]) -> None:
    lines = "".join(map(encode_event, events))
    if file.tell():
        file.seek(-1, os.SEEK_END)
        # A line that a kill cut short is terminated first.
        lines = lines if file.read(1) == b"\n" else "\n" + lines
    file.write(lines.encode("utf-8", errors="replace"))
