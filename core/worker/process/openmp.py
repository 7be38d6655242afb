"""OpenMP threads beside other processes: how long they spin while they wait for each other.

At the end of each parallel region the threads of OpenMP wait for the last of them, and between two regions for the next
one. Spinning is the fastest way to do so while each thread has a core: libgomp spins 300,000 rounds before a thread
sleeps. Where another process takes a core, the thread that is waited for is not running, and the others burn the
time that it needs: measured on two cores, training falls to a twentieth of its speed.

libgomp has a mode for that: where a process has more OpenMP threads than cores, they spin 1,000 rounds only
(``GOMP_SPINCOUNT`` in its manual). The number of rounds can be set before a process starts, that of the threads at any
time: teams of threads that sleep turn the mode on, and their end turns it off. What is computed stays the same, as the
number of threads that compute does.
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

#: Cores that others take beyond those that are free, from which on spinning loses: measured on two cores beside a
#: process that takes 0.3, 0.5 and 0.7 of one, 369, 270 and 165 tokens a second with spinning, 280, 260 and 251 without.
CROWDED = 0.55
#: Share of their time that our threads must have waited for a core; beside one busy process it is a half, beside none a
#: hundredth. In a container others' load may be on cores that are not ours.
WAITED = 0.1
#: Looks without a crowd until the threads spin again.
CALM = 10
#: Seconds between two looks.
BEAT = 1.0
#: Elements that torch divides among its threads.
SHARED_WORK = 1 << 17


@dataclass(frozen=True)
class CpuLoad:
    """The load of the cores that this process may use, since the last look."""

    cores: int
    threads: int
    """OpenMP threads that compute."""
    others: float
    """Cores that other processes took."""
    waited: float | None
    """Share of the time that one of our threads waited for a core, as if there were ``threads`` of them; None where the
    system does not tell."""

    @property
    def is_crowded(self) -> bool:
        """Whether others take cores that our threads need."""
        return self.threads > 1 and self.others > self.cores - self.threads + CROWDED


@dataclass
class SpinPolicy:
    """Whether threads should spin but for a moment; it goes back only after a while without a crowd."""

    is_brief: bool = False
    _calm: int = field(default=0, repr=False)

    def decide(self, load: CpuLoad) -> bool:
        """Take a look into account; returns whether threads should spin but for a moment."""
        if load.is_crowded:
            self._calm = 0
            self.is_brief = self.is_brief or load.waited is None or load.waited >= WAITED
        else:
            self._calm += 1
            self.is_brief = self.is_brief and self._calm < CALM
        return self.is_brief


class CpuLoadMeter:
    """A meter of the cores' load.

    Args:
        threads: OpenMP threads that compute.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._cores = sorted(os.sched_getaffinity(0))
        self._last = self._read()

    def _read(self) -> tuple[float, float, float, float | None]:
        """Time; seconds that the cores were busy, that this process computed, and that its threads waited."""
        times = psutil.cpu_times(percpu=True)
        busy = sum(
            sum(times[core]) - times[core].idle - times[core].iowait for core in self._cores if core < len(times)
        )
        return time.monotonic(), busy, time.process_time(), waited_seconds()

    def look(self) -> CpuLoad:
        """The load since the last look."""
        before, now = self._last, self._read()
        self._last = now
        seconds = max(now[0] - before[0], 1e-3)
        others = (now[1] - before[1] - (now[2] - before[2])) / seconds
        waited = None if now[3] is None or before[3] is None else (now[3] - before[3]) / (seconds * self._threads)
        return CpuLoad(len(self._cores), self._threads, max(others, 0.0), waited)


def waited_seconds() -> float | None:
    """Seconds that the threads of this process have waited for a core; None where Linux does not count them."""
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
    """Lets OpenMP's threads spin while there is a core for each, and but for a moment where there is not.

    Args:
        look: Tells the load since it was last called; that of this machine, if None.
        beat: Seconds between two looks.
    """

    def __init__(self, look: Callable[[], CpuLoad] | None = None, *, beat: float = BEAT) -> None:
        self._threads = torch.get_num_threads()
        self._look = look
        self._beat = beat
        self._ended = threading.Event()
        self._teams: list[_SleepingTeam] = []

    def start(self) -> None:
        """Begin to look, where there is more than one thread."""
        if self._threads > 1:
            threading.Thread(target=self._watch, name="openmp", daemon=True).start()

    def close(self) -> None:
        """Look no longer."""
        self._ended.set()

    @property
    def is_brief(self) -> bool:
        """Whether threads spin but for a moment."""
        return bool(self._teams)

    def _watch(self) -> None:
        look = self._look or CpuLoadMeter(self._threads).look
        policy = SpinPolicy()
        while not self._ended.wait(self._beat):
            self._spin(brief=policy.decide(look()))
        self._spin(brief=False)

    def _spin(self, *, brief: bool) -> None:
        if brief and not self._teams:
            # The first thread of a team is none of libgomp's.
            missing = len(os.sched_getaffinity(0)) + 1 - self._threads
            self._teams = [_SleepingTeam() for _ in range(max(-(-missing // (self._threads - 1)), 1))]
        elif not brief and self._teams:
            for team in self._teams:
                team.end()
            self._teams = []


def renew_thread_pool(threads: int | None = None) -> None:
    """Renew torch's pool of threads in a forked process, while it has one thread.

    Torch replaces the pool of the process that was forked at its first use; a second thread that comes at that moment
    finds none, and fails with "Invalid thread pool".

    Args:
        threads: How many it has; None for as many as before.
    """
    torch.set_num_threads(threads or torch.get_num_threads())


class _SleepingTeam:
    """A team of OpenMP threads with nothing to do: they sleep, and count."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="openmp team", daemon=True)
        self._thread.start()

    def _hold(self) -> None:
        # A thread's first parallel region gives it a team of its own, which ends with the thread.
        torch.ones(SHARED_WORK).add_(1.0)
        self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
