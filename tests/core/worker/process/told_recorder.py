"""A recorder without a run: what it is told stays in memory."""

from __future__ import annotations

from pathlib import Path

from core.runs.record.events import Event, NoticeEvent
from core.runs.record.store import Run
from core.worker.process.recorder import Recorder


class ToldRecorder(Recorder):
    """A recorder for parts that only tell something. It is one by its type, so that mypy compares the methods."""

    def __init__(self) -> None:
        # No files, meters or threads: Recorder's own are not made.
        self.run = Run(Path("r"))
        self.events: list[Event] = []

    @property
    def notices(self) -> list[NoticeEvent]:
        """What the user was told."""
        return [event for event in self.events if isinstance(event, NoticeEvent)]

    def event(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def notice(self, level: str, code: str, message: str, hint: str = "") -> None:
        """Keep a notice."""
        self.event(NoticeEvent(level=level, code=code, message=message, hint=hint))

    def progress(self, what: str, done: int = 0, total: int = 0) -> None:
        """Nothing: nobody watches."""
