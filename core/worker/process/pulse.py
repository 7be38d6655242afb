"""Pulse of the training thread in rank 0 of a run of several processes, and a clock that excludes suspensions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class Pulse:
    """Counter that the training thread increments; None while the thread may take arbitrarily long.

    Incremented by the training thread, read by the heartbeat thread.
    """

    def __init__(self) -> None:
        self._count = self._holds = 0
        self._is_on = False

    def begin(self) -> None:
        """Start counting."""
        self._is_on = True

    def end(self) -> None:
        """Stop counting: the remaining work may take arbitrarily long."""
        self._is_on = False

    def beat(self) -> None:
        """Count one piece of work."""
        self._count += 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Context for work that the other processes wait for, for as long as it takes."""
        self._holds += 1
        try:
            yield
        finally:
            self._count += 1
            self._holds -= 1

    @property
    def count(self) -> int | None:
        """The count; None while the thread may take arbitrarily long."""
        return self._count if self._is_on and not self._holds else None


class Unchanged:
    """Measures how long a reported number has been unchanged.

    Args:
        clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._value: int | None = None
        self._since = 0.0

    def note(self, value: object) -> None:
        """Report the number, possibly from another machine; any other value counts as none."""
        number = value if type(value) is int else None
        if number != self._value:
            self._value, self._since = number, self._clock()

    @property
    def seconds(self) -> float:
        """Seconds since it last changed; 0 without a number."""
        return 0.0 if self._value is None else self._clock() - self._since


@dataclass
class AwakeClock:
    """Seconds in which this process was awake, since a suspended process hears nobody. A thread ticks it regularly: a
    much longer gap between two ticks was a suspension, by SIGSTOP, a frozen container or Slurm.

    Args:
        most: Maximum seconds counted between two ticks.
        clock: Monotonic clock in seconds.
    """

    most: float
    clock: Callable[[], float] = time.monotonic
    seconds: float = field(default=0.0, init=False)
    """As of the last tick; may be read by any thread."""
    _looked: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._looked = self.clock()

    def tick(self) -> float:
        """Update the clock; returns the seconds so far."""
        now = self.clock()
        self.seconds += min(now - self._looked, self.most)
        self._looked = now
        return self.seconds
