"""A glimpse of a long record: its curve from some thousand places of the file, long before all of it has been read.

Reading a million steps takes tens of seconds; a screen has some hundred columns.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO

from core.runs.events import LINE_LIMIT, StepEvent, decode_step
from core.runs.history import RunHistory
from core.runs.series import Series
from core.runs.store import Run
from core.small_files import open_regular

#: Bytes from which a record is long: reading it takes more than a second.
LONG_BYTES = 8 << 20
#: Places of the file that are looked at, and bytes that are read at each.
PLACES, PLACE_BYTES = 2000, 2048


@dataclass(frozen=True)
class Glimpse:
    """Some steps of a run, evenly spread over its record."""

    loss: Series
    last_step: StepEvent


def glimpse_history(glimpse: Glimpse) -> RunHistory:
    """A history that has only the curve and the newest step; what it counts is wrong."""
    history = RunHistory()
    history.loss, history.last_step = glimpse.loss, glimpse.last_step
    return history


def is_long(run: Run) -> bool:
    """Whether a run's record takes long to read."""
    try:
        return os.stat(run.events_path).st_size > LONG_BYTES
    except OSError:
        return False


def read_glimpse(run: Run) -> Glimpse | None:
    """Some steps of a run from all over its record; None where it is short, cannot be read or has none there.

    A run that was continued has replayed some steps; those that the record has last are kept.
    """
    loss, last = Series(), None
    try:
        with open_regular(run.events_path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= LONG_BYTES:
                return None
            for number in range(PLACES):
                place = (size - PLACE_BYTES) * number // (PLACES - 1)
                if (step := _step_near(file, place)) is not None:
                    loss.append(step.step, step.loss)
                    last = step
    except OSError:
        return None
    return Glimpse(loss, last) if last is not None else None


def _step_near(file: FileIO, place: int) -> StepEvent | None:
    """The first step that begins in the piece of the file at a place; None where it has none."""
    lines = os.pread(file.fileno(), min(PLACE_BYTES, LINE_LIMIT), place).split(b"\n")
    # The first piece is the rest of a line, the last one the beginning of another.
    return next((step for line in lines[1:-1] if (step := decode_step(line)) is not None), None)
