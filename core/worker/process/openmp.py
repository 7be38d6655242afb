"""OpenMP threads beside other processes: how long they spin while they wait for each other.

At the end of a parallel region OpenMP threads wait for the last of them, and between regions for the next one. Spinning
is fastest while each thread has a core: libgomp spins 300,000 rounds before a thread sleeps. If another process takes a
core, the awaited thread is not running, and the others burn the time it needs: measured on two cores, training falls to
a twentieth of its speed.

libgomp spins only 1,000 rounds if a process has more OpenMP threads than cores (``GOMP_SPINCOUNT`` in its manual). The
number of rounds is fixed at process start, but the number of threads is not: teams of sleeping threads turn this mode
on, and ending them turns it off. Results stay the same, because the number of computing threads does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

#: Cores taken by others beyond the free ones at which spinning loses. Measured on two cores beside a process that takes
#: 0.3, 0.5 and 0.7 of one: 369, 270 and 165 tokens/s with spinning, 280, 260 and 251 without.
CROWDED = 0.55
#: Minimum share of time that our threads must have waited for a core: beside one busy process it is a half, alone a
#: hundredth. In a container, the load of others may be on cores that are not ours.
WAITED = 0.1
#: Number of calm readings before the threads spin again.
CALM = 10
#: Seconds between two readings.
BEAT = 1.0
#: Number of elements that torch splits among its threads.
SHARED_WORK = 1 << 17


@dataclass(frozen=True)
class CpuLoad:
    """Load of the cores available to this process, since the last reading."""

    cores: int
    threads: int
    """OpenMP threads that compute."""
    others: float
    """Cores used by other processes."""
    waited: float | None
    """Share of time that one of ``threads`` threads waited for a core; None if the system does not report it."""

    @property
    def is_crowded(self) -> bool:
        """True if others use cores that our threads need."""
        return self.threads > 1 and self.others > self.cores - self.threads + CROWDED


@dataclass
class SpinPolicy:
    """Decides whether threads spin only briefly; switches back after a calm period."""

    is_brief: bool = False
    _calm: int = field(default=0, repr=False)

    def decide(self, load: CpuLoad) -> bool:
        """Add a reading; returns True if threads should spin only briefly."""
        if load.is_crowded:
            self._calm = 0
            self.is_brief = self.is_brief or load.waited is None or load.waited >= WAITED
        else:
            self._calm += 1
            self.is_brief = self.is_brief and self._calm < CALM
        return self.is_brief


class CpuLoadMeter:
    """Meter of CPU load.

    Args:
        threads: OpenMP threads that compute.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._cores = sorted(os.sched_getaffinity(0))
        self._last = self._read()

    def _read(self) -> tuple[float, float, float, float | None]:
        """Time; busy seconds of the cores; CPU seconds of this process; seconds its threads waited."""
        times = psutil.cpu_times(percpu=True)
        busy = sum(
            sum(times[core]) - times[core].idle - times[core].iowait for core in self._cores if core < len(times)
        )
        return time.monotonic(), busy, time.process_time(), waited_seconds()

    def look(self) -> CpuLoad:
        """Load since the last reading."""
        before, now = self._last, self._read()
        self._last = now
        seconds = max(now[0] - before[0], 1e-3)
        others = (now[1] - before[1] - (now[2] - before[2])) / seconds
        waited = None if now[3] is None or before[3] is None else (now[3] - before[3]) / (seconds * self._threads)
        return CpuLoad(len(self._cores), self._threads, max(others, 0.0), waited)


def waited_seconds() -> float | None:
    """Seconds that the threads of this process have waited for a core; None if Linux does not count them."""
    total = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread has ended
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9


class SpinControl:
    """Lets OpenMP threads spin while each has a core, and only briefly otherwise.

    Args:
        look: Returns the load since the last call; None for this machine's.
        beat: Seconds between two readings.
    """

    def __init__(self, look: Callable[[], CpuLoad] | None = None, *, beat: float = BEAT) -> None:
        self._threads = torch.get_num_threads()
        self._look = look
        self._beat = beat
        self._ended = threading.Event()
        self._teams: list[_SleepingTeam] = []

    def start(self) -> None:
        """Start watching the load, if there is more than one thread."""
        if self._threads > 1:
            threading.Thread(target=self._watch, name="openmp", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()

    @property
    def is_brief(self) -> bool:
        """True if threads spin only briefly."""
        return bool(self._teams)

    def _watch(self) -> None:
        look = self._look or CpuLoadMeter(self._threads).look
        policy = SpinPolicy()
        while not self._ended.wait(self._beat):
            self._spin(brief=policy.decide(look()))
        self._spin(brief=False)

    def _spin(self, *, brief: bool) -> None:
        if brief and not self._teams:
            # The first thread of a team does not belong to libgomp.
            missing = len(os.sched_getaffinity(0)) + 1 - self._threads
            self._teams = [_SleepingTeam() for _ in range(max(-(-missing // (self._threads - 1)), 1))]
        elif not brief and self._teams:
            for team in self._teams:
                team.end()
            self._teams = []


def renew_thread_pool(threads: int | None = None) -> None:
    """Recreate torch's thread pool in a forked process while it has one thread.

    Torch replaces the parent's pool on first use; a second thread that arrives at that moment fails with "Invalid
    thread pool".

    Args:
        threads: Number of threads; None to keep it.
    """
    torch.set_num_threads(threads or torch.get_num_threads())


class _SleepingTeam:
    """Team of sleeping OpenMP threads, which only count."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="openmp team", daemon=True)
        self._thread.start()

    def _hold(self) -> None:
        # A thread's first parallel region creates its team, which ends with the thread.
        torch.ones(SHARED_WORK).add_(1.0)
        self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
