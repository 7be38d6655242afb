"""Forwarding of a run's events to a tracker, each one once, until the run is over."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from core.runs.record.state import own_identity
from core.runs.record.tail import EventTail
from core.tracking.destinations import Destination
from core.tracking.figures import figures, step_of
from core.tracking.position import Position, TrackerFiles

#: Seconds between two polls of a run that has nothing new.
LOOK_SECONDS = 1.0


class Forwarder:
    """A reader that tails a run and logs its metrics to a destination.

    The position advances only when the destination has confirmed the metrics; whatever ends the process before that,
    the next one undoes the rest (:meth:`Destination.restore`) and continues from there.

    Args:
        place: The files of the tracker.
        destination: The destination; it is opened at the first metrics, so that nothing is made where there are none.
        alive: Called after each answer of the tracker, and before the next call.
    """

    def __init__(self, place: TrackerFiles, destination: Destination, alive: Callable[[], None]) -> None:
        self._place = place
        self._destination = destination
        self._alive = alive
        pid, identity = own_identity()
        before = Position.read(place.position_path)
        self._position = dataclasses.replace(before, pid=pid, pid_started=identity)
        self._was_clean = before.state == "done"
        self._is_first = not before.state
        self._is_open = False

    def run(self) -> int:
        """Forward everything, until the run is over.

        Returns:
            Number of sets of metrics sent.
        """
        if not self._is_first and not self._destination.restore(self._position.memory, clean=self._was_clean):
            self._position = dataclasses.replace(self._position, offset=0, rows=0, step=0, memory={})
        first = self._position.rows
        self._save(state="waiting", reason="")
        tail = EventTail(self._place.run.events_path, self._position.offset)
        rows, step = self._position.rows, self._position.step
        while True:
            # Checked before the events are read: after an end, all events have then been read.
            is_over = self._place.run.state().is_over
            for events in tail.batches():
                self._alive()
                for event in events:
                    step = step_of(event, step)
                    if told := figures(event):
                        self._open()
                        self._destination.tell(told, step, event.t, rows)
                        self._alive()
                        rows += 1
                reached: dict[str, Any] = {"offset": tail.offset, "rows": rows, "step": step}
                if self._is_open and self._destination.durable and tail.offset != self._position.offset:
                    self._commit(reached)
            if is_over:
                break
            time.sleep(LOOK_SECONDS)
        if self._is_open:
            self._destination.close()
            self._alive()
        self._commit(reached, state="done")
        return rows - first

    def _open(self) -> None:
        if not self._is_open:
            self._save(state="sending")
            self._destination.open()
            self._is_open = True

    def _commit(self, reached: dict[str, Any], state: str | None = None) -> None:
        """Save the position, once the destination has confirmed it."""
        if self._is_open:
            if state is None:
                self._destination.flush()
            self._position = dataclasses.replace(self._position, memory=self._destination.remember())
        self._position = dataclasses.replace(self._position, **reached)
        self._save(state=state or self._position.state)

    def _save(self, **changes: Any) -> None:
        self._position = dataclasses.replace(self._position, **changes)
        self._position.write(self._place)
