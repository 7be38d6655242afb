"""Heartbeats of processes that have no supervisor, as under torchrun and Slurm: each counts up a number in the store
over which they have met, and one that waits for the others without a limit looks at theirs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d

#: Beats in the time after which a process is taken for lost, and the most seconds between two of them.
_BEATS, _MOST_SECONDS = 10.0, 5.0


@dataclass
class Heartbeats:
    """Beats of this process, and those that it has heard of the others.

    Args:
        store: What all processes write to and read.
        rank: The number of this process.
        count: How many there are.
        clock: Seconds that only ever go up.
    """

    store: Store
    rank: int
    count: int
    clock: Callable[[], float] = time.monotonic
    _beats: int = field(default=0, init=False)
    _heard: dict[int, tuple[int, float]] = field(default_factory=dict, init=False)
    """The last beat of each other process, and when it was heard."""

    def __post_init__(self) -> None:
        self._heard = {rank: (0, self.clock()) for rank in range(self.count) if rank != self.rank}

    def beat(self) -> None:
        """Beat once, and listen to the others; a store that does not answer has nothing new."""
        self._beats += 1
        try:
            self.store.set(str(self.rank), str(self._beats))
            for rank, (beat, _) in list(self._heard.items()):
                if self.store.check([str(rank)]) and (newest := int(self.store.get(str(rank)))) != beat:
                    self._heard[rank] = newest, self.clock()
        except RuntimeError:  # of the connection
            return

    def silent(self, seconds: float) -> int | None:
        """The number of a process that has not been heard for so long; None where there is none."""
        return next((rank for rank, (_, at) in self._heard.items() if self.clock() - at >= seconds), None)


def keep_beating(
    rank: int, count: int, seconds: float, is_waiting: Callable[[], bool], lost: Callable[[str], None]
) -> None:
    """Beat on a thread, once the processes have met.

    Args:
        rank: The number of this process.
        count: How many there are.
        seconds: Without a beat, after which a process is lost.
        is_waiting: Whether this process waits for the others.
        lost: Called where it waits, and another one is lost: the wait itself has no end.
    """
    heartbeats = Heartbeats(PrefixStore("heartbeats", distributed_c10d._get_default_store()), rank, count)

    def run() -> None:
        while True:
            heartbeats.beat()
            if is_waiting() and (silent := heartbeats.silent(seconds)) is not None:
                lost(f"process {silent} has given no sign of life for {seconds:.0f} s")
                return
            time.sleep(min(seconds / _BEATS, _MOST_SECONDS))

    threading.Thread(target=run, name="heartbeats", daemon=True).start()
