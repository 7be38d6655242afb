"""Pulse of the thread that leads a run of several processes, and the clock of a process without its suspensions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class Pulse:
    """A count that goes up with whatever the thread has done; none while it may take as long as it likes.

    Beaten by the training thread, read by the one that gives signs of life.
    """

    def __init__(self) -> None:
        self._count = self._holds = 0
        self._is_on = False

    def begin(self) -> None:
        """From now on it counts."""
        self._is_on = True

    def end(self) -> None:
        """It counts no more: what is left takes as long as it takes."""
        self._is_on = False

    def beat(self) -> None:
        """Something is done."""
        self._count += 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, this process does something that the others wait for, for as long as it takes."""
        self._holds += 1
        try:
            yield
        finally:
            self._count += 1
            self._holds -= 1

    @property
    def count(self) -> int | None:
        """The count; None while the thread may take as long as it likes."""
        return self._count if self._is_on and not self._holds else None


class Unchanged:
    """For how long a number that is told again and again has been the same.

    Args:
        clock: Seconds that only ever go up.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._value: int | None = None
        self._since = 0.0

    def note(self, value: object) -> None:
        """The number as told, by another machine perhaps; what is none counts as none."""
        number = value if type(value) is int else None
        if number != self._value:
            self._value, self._since = number, self._clock()

    @property
    def seconds(self) -> float:
        """Seconds since it has changed; 0 where there is none."""
        return 0.0 if self._value is None else self._clock() - self._since


@dataclass
class AwakeClock:
    """Seconds in which this process was awake; it hears nobody while it is suspended. A thread looks at the clock
    regularly: a far longer pause between two looks was a suspension, by SIGSTOP, a frozen container or Slurm.

    Args:
        most: Seconds between two looks that count at most.
        clock: Seconds that only ever go up.
    """

    most: float
    clock: Callable[[], float] = time.monotonic
    seconds: float = field(default=0.0, init=False)
    """As of the last look; may be read by any thread."""
    _looked: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._looked = self.clock()

    def tick(self) -> float:
        """Look at the clock; the seconds until now."""
        now = self.clock()
        self.seconds += min(now - self._looked, self.most)
        self._looked = now
        return self.seconds
