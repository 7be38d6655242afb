"""Samples of a run: the answers that its model gives to the sample questions, as many as are kept."""

from __future__ import annotations

from collections import deque

from core.runs.events import SampleEvent

#: Most samples kept, and most characters of them all.
SAMPLES, SAMPLE_CHARACTERS = 500, 1 << 22


class Samples:
    """The answers of a run in the order of their steps: those given first, and the newest."""

    def __init__(self) -> None:
        self.kept: deque[SampleEvent] = deque()
        self._characters = 0
        self._first = 0
        self._is_of_start = False

    def begin_start(self) -> None:
        """A worker has started: its answers replace those that were given before for their steps."""
        self._is_of_start = False

    def add(self, event: SampleEvent) -> None:
        """Add an answer; the answers of a step come together."""
        if self.kept and (not self._is_of_start or self.kept[-1].step > event.step):
            self.rewind(event.step)
        self._is_of_start = True
        if not self.kept or self.kept[0].step == event.step:
            self._first += 1
        self.kept.append(event)
        self._characters += _characters(event)
        # The first answers stay: all others are compared with them.
        while len(self.kept) > SAMPLES or self._characters > SAMPLE_CHARACTERS:
            place = self._first if len(self.kept) > self._first else 0
            self._first -= 0 if place else 1
            self._characters -= _characters(self.kept[place])
            del self.kept[place]

    def rewind(self, step: int) -> None:
        """Forget the answers of steps from ``step`` on: they are being replayed."""
        while self.kept and self.kept[-1].step >= step:
            self._characters -= _characters(self.kept.pop())
        self._first = min(self._first, len(self.kept))


def _characters(event: SampleEvent) -> int:
    return len(event.prompt) + len(event.text) + len(event.expected or "")
