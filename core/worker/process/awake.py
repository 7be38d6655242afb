"""Time in which a process was awake: what others have not said while it was suspended itself, it could not hear."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class AwakeClock:
    """Seconds in which this process has run. It is looked at regularly by one thread; a pause between two looks that is
    far longer than usual was one in which the process was suspended: by SIGSTOP, a frozen container, Slurm.

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
