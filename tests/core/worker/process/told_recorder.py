"""A recorder without a run, which keeps its events in memory."""

from __future__ import annotations

from pathlib import Path

from core.runs.record.events import Event, NoticeEvent
from core.runs.record.store import Run
from core.worker.process.recorder import Recorder


class ToldRecorder(Recorder):
    """Recorder for parts that only report. A subclass, so that mypy checks the methods."""

    def __init__(self) -> None:
        # No files, meters or threads: Recorder's own are not made.
        self.run = Run(Path("r"))
        self.events: list[Event] = []

    @property
    def notices(self) -> list[NoticeEvent]:
        """Notices so far."""
        return [event for event in self.events if isinstance(event, NoticeEvent)]

    def event(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def notice(self, level: str, code: str, message: str, hint: str = "") -> None:
        """Keep a notice."""
        self.event(NoticeEvent(level=level, code=code, message=message, hint=hint))

    def progress(self, what: str, done: int = 0, total: int = 0) -> None:
        """Nothing: nobody watches."""
