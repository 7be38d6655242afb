"""Reports of a process to its supervisor, as lines of JSON in a pipe: heartbeats, and the reason of an end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from core.worker.process.step_watchdog import place_of

#: Environment variables with the pipe's descriptor, and the supervisor's pid.
REPORTS, SUPERVISOR = "LOCALTUNE_REPORTS", "LOCALTUNE_SUPERVISOR"
#: Seconds between two heartbeats.
BEAT_SECONDS = 1.0
#: ``prctl`` option: signal for this process when its parent ends.
_PDEATHSIG = 1


class Reports:
    """Reports and heartbeats of a process to its supervisor.

    Args:
        descriptor: Descriptor of the pipe; None without a supervisor.
        supervisor: The supervisor's pid.
    """

    def __init__(self, descriptor: int | None, supervisor: int | None) -> None:
        self._descriptor = descriptor
        self._guard = threading.Lock()
        self.supervisor = supervisor
        self.signs: Callable[[], dict[str, Any]] = lambda: {"waiting": False}
        """Fields of a heartbeat: ``waiting``, True if the process waits for the others; ``wait``, the number of that
        wait; ``pulse``, see :class:`core.worker.process.reports.Pulse`."""
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
            threading.Thread(target=self._beat, name="reports", daemon=True).start()

    def tell(self, **fields: Any) -> None:
        """Send a report.

        Args:
            **fields: ``error`` and ``hint``: reason of an end; ``following``: options the run continues with; ``host``,
                ``pid`` and ``device``: place of the process.
        """
        if self._descriptor is None:
            return
        line = json.dumps(fields).encode("utf-8") + b"\n"
        # If the supervisor is gone, this process is about to be killed as well.
        with self._guard, contextlib.suppress(OSError):
            os.write(self._descriptor, line)

    def _beat(self) -> None:
        before: Any = None
        while True:
            signs = self.signs()
            pulse = signs.get("pulse")
            at = place_of(threading.main_thread()) if pulse is not None and pulse == before else ""
            before = pulse
            self.tell(**signs, at=at)
            time.sleep(BEAT_SECONDS)


def report_to_supervisor() -> Reports:
    """Reports of this process, which ends with its supervisor from now on; silent without one."""
    number, supervisor = os.environ.pop(REPORTS, ""), os.environ.pop(SUPERVISOR, "")
    if not number or not supervisor:
        return Reports(None, None)
    # The kernel kills it even if it is suspended or deep in a driver.
    ctypes.CDLL(None, use_errno=True).prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(supervisor):
        os._exit(1)  # the supervisor has ended before
    return Reports(int(number), int(supervisor))


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
