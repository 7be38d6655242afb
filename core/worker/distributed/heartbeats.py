"""Heartbeats of processes that have no supervisor, as under torchrun and Slurm: each counts up a number in the store
over which they have met, and one that waits for the others without a limit looks at theirs.

The store is in the first process. Where that one is suspended, or its machine is gone, a question to the store is not
answered and has no limit of time: so one thread beats, and another one watches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d

from core.worker.process.pulse import AwakeClock, Unchanged

#: What the first process tells its pulse by.
_PULSE = "pulse"
#: Seconds beyond the limit of common work, in which that ends by itself.
_QUIET_SECONDS = 5.0
#: Beats in the time after which a process is taken for lost, and the most seconds between two of them.
_BEATS, _MOST_SECONDS = 10.0, 5.0


@dataclass
class Heartbeats:
    """Beats of this process, and those that it has heard of the others; one thread beats, another one may watch.

    Args:
        store: What all processes write to and read; the first one has it.
        rank: The number of this process.
        count: How many there are.
        clock: Seconds that only ever go up.
        pulse: In the first process, what it tells of its training thread: see
            :class:`core.worker.process.pulse.Pulse`; None while that waits for the others.
    """

    store: Store
    rank: int
    count: int
    clock: Callable[[], float] = time.monotonic
    pulse: Callable[[], int | None] = lambda: None
    _beats: int = field(default=0, init=False)
    _heard: dict[int, tuple[int, float]] = field(default_factory=dict, init=False)
    """The last beat of each other process, and when it was heard."""
    _listened: float = field(default=0.0, init=False)
    """When all of them were last asked for, and the store has answered."""
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False)
    """Of what was heard; never held while the store is asked."""

    def __post_init__(self) -> None:
        self._listened = self.clock()
        self._first = Unchanged(self.clock)
        self._heard = {rank: (0, self._listened) for rank in range(self.count) if rank != self.rank}

    def beat(self) -> None:
        """Beat once, and listen to the others; a store that does not answer has nothing new. It may never return."""
        self._beats += 1
        try:
            self.store.set(str(self.rank), str(self._beats))
            self._tell_pulse()
            for rank, (beat, _) in list(self._heard.items()):
                if self.store.check([str(rank)]) and (newest := int(self.store.get(str(rank)))) != beat:
                    with self._guard:
                        self._heard[rank] = newest, self.clock()
        except RuntimeError:  # of the connection
            return
        with self._guard:
            self._listened = self.clock()

    def _tell_pulse(self) -> None:
        """Tell the pulse in the first process, hear it in the others."""
        if self.rank == 0:
            count = self.pulse()
            self.store.set(_PULSE, "" if count is None else str(count))
        elif self.store.check([_PULSE]):
            told = self.store.get(_PULSE).decode("ascii")
            with self._guard:
                self._first.note(int(told) if told else None)

    def still(self) -> float:
        """Seconds in which the first process has done nothing that it would soon be done with; 0 where that is not
        known."""
        with self._guard:
            return self._first.seconds if self.clock() - self._listened < _QUIET_SECONDS + _MOST_SECONDS else 0.0

    def silent(self, seconds: float) -> int | None:
        """The number of a process that has not been heard for so long; None where there is none.

        Others are silent as long as the store has answered meanwhile. Where it has not for so long, it is the first one
        that is silent, which has it: nothing is known of the others.
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
    """Beat on a thread, and watch on another one, once the processes have met.

    Args:
        rank: The number of this process.
        count: How many there are.
        seconds: Without a beat, after which a process is lost. Those in which this one was suspended are not counted.
        is_waiting: Whether this process waits for the others.
        lost: Called where it waits, and another one is lost: the wait itself has no end.
        wait: The number of its present wait.
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
            # Common work ends by itself before that: what is waited for is an order of the first process.
            if min(waited.seconds, heartbeats.still()) >= seconds + _QUIET_SECONDS:
                lost(f"process 0 hangs: it has been waited for for {waited.seconds:.0f} s, and does nothing")
                return

    for work, name in ((beat, "heartbeats"), (watch, "watch")):
        threading.Thread(target=work, name=name, daemon=True).start()
