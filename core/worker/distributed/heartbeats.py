"""Heartbeats of processes without a supervisor, as under torchrun and Slurm: each increments a number in the rendezvous
store, and a process that waits without a limit watches the others' numbers.

The store is in rank 0. If that process is suspended or its machine is gone, requests to the store block forever; so one
thread beats, and another one watches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d

from core.worker.process.reports import AwakeClock, Unchanged

#: Store key of rank 0's pulse.
_PULSE = "pulse"
#: Extra seconds beyond the timeout of collectives, which end by themselves.
_QUIET_SECONDS = 5.0
#: Beats per timeout, and maximum seconds between two beats.
_BEATS, _MOST_SECONDS = 10.0, 5.0


@dataclass
class Heartbeats:
    """Beats of this process, and the last known beats of the others. One thread beats, another may watch.

    Args:
        store: Store that all processes write to and read; rank 0 hosts it.
        rank: Rank of this process.
        count: Number of processes.
        clock: Monotonic clock in seconds.
        pulse: In rank 0, the pulse of its training thread: see :class:`core.worker.process.reports.Pulse`; None while
            it waits for the others.
    """

    store: Store
    rank: int
    count: int
    clock: Callable[[], float] = time.monotonic
    pulse: Callable[[], int | None] = lambda: None
    _beats: int = field(default=0, init=False)
    _heard: dict[int, tuple[int, float]] = field(default_factory=dict, init=False)
    """Last beat of each other process, and its time."""
    _listened: float = field(default=0.0, init=False)
    """Time when the store last answered for all of them."""
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False)
    """Guards the beats; never held during a request to the store."""

    def __post_init__(self) -> None:
        self._listened = self.clock()
        self._first = Unchanged(self.clock)
        self._heard = {rank: (0, self._listened) for rank in range(self.count) if rank != self.rank}

    def beat(self) -> None:
        """Beat once, and read the others' beats; a store that does not answer has no news. May block forever."""
        self._beats += 1
        try:
            self.store.set(str(self.rank), str(self._beats))
            self._tell_pulse()
            for rank, (beat, _) in list(self._heard.items()):
                if self.store.check([str(rank)]) and (newest := int(self.store.get(str(rank)))) != beat:
                    with self._guard:
                        self._heard[rank] = newest, self.clock()
        except RuntimeError:  # connection error
            return
        with self._guard:
            self._listened = self.clock()

    def _tell_pulse(self) -> None:
        """Write the pulse in rank 0, read it in the others."""
        if self.rank == 0:
            count = self.pulse()
            self.store.set(_PULSE, "" if count is None else str(count))
        elif self.store.check([_PULSE]):
            told = self.store.get(_PULSE).decode("ascii")
            with self._guard:
                self._first.note(int(told) if told else None)

    def still(self) -> float:
        """Seconds without progress of rank 0 in work that should be short; 0 if unknown."""
        with self._guard:
            return self._first.seconds if self.clock() - self._listened < _QUIET_SECONDS + _MOST_SECONDS else 0.0

    def silent(self, seconds: float) -> int | None:
        """Rank of a process without a beat for this long; None if there is none.

        Processes are silent while the store answers. If the store has not answered for this long, rank 0 is the silent
        one, because it hosts the store; nothing is known of the others.
        """
        with self._guard:
            listened, heard = self._listened, dict(self._heard)
        if self.clock() - listened >= seconds:
            return min(heard, default=None)
        return next((rank for rank, (_, at) in heard.items() if listened - at >= seconds), None)


def keep_beating(
    rank: int,
    count: int,
    seconds: float,
    is_waiting: Callable[[], bool],
    lost: Callable[[str], None],
    *,
    wait: Callable[[], int] = lambda: 0,
    pulse: Callable[[], int | None] = lambda: None,
) -> None:
    """Beat on one thread and watch on another, once the processes have met.

    Args:
        rank: Rank of this process.
        count: Number of processes.
        seconds: Seconds without a beat after which a process is lost, excluding suspensions of this process.
        is_waiting: Returns True while this process waits for the others.
        lost: Called if it waits for a lost process, since the wait itself never ends.
        wait: Returns the number of its current wait.
        pulse: As for :class:`Heartbeats`.
    """
    pause = min(seconds / _BEATS, _MOST_SECONDS)
    awake = AwakeClock(2 * pause)
    store = PrefixStore("heartbeats", distributed_c10d._get_default_store())
    heartbeats = Heartbeats(store, rank, count, lambda: awake.seconds, pulse)
    waited = Unchanged(lambda: awake.seconds)

    def beat() -> None:
        while True:
            heartbeats.beat()
            time.sleep(pause)

    def watch() -> None:
        while True:
            time.sleep(pause)
            awake.tick()
            if is_waiting() and (silent := heartbeats.silent(seconds)) is not None:
                lost(f"process {silent} has given no sign of life for {seconds:.0f} s")
                return
            waited.note(wait() if is_waiting() else None)
            # Collectives time out before that: this is a wait for an order of rank 0.
            if min(waited.seconds, heartbeats.still()) >= seconds + _QUIET_SECONDS:
                lost(f"process 0 hangs: it has been waited for for {waited.seconds:.0f} s, and does nothing")
                return

    for work, name in ((beat, "heartbeats"), (watch, "watch")):
        threading.Thread(target=work, name=name, daemon=True).start()
