"""Orders of rank 0 to the other processes, so that all do the same at the same moment.

Rank 0 alone decides on commands, limits and evaluations. The others carry out its orders until it orders them to leave.
While it works alone (a pause, an evaluation, a checkpoint) they wait without a limit. Regular orders to wait show that
they are alive, and whether one of them holds the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from core.worker.distributed.ranks import Ranks
from core.worker.process.control import StopRequested
from core.worker.progress.state import TrainState

#: ``step``: one optimizer step · ``leave``: the end. The rest is for strategies that shard weights: ``forward``: take
#: part in a forward pass of rank 0 · ``save``, ``result``: send it the shards.
OrderName = Literal["step", "leave", "forward", "save", "result"]
_WAIT = "wait"
#: Orders to wait per timeout, and maximum seconds between two of them.
_SIGNS, _MOST_SECONDS = 10.0, 5.0

#: Context of forward passes of rank 0 alone; the argument is called before each of them.
Passes = Callable[[Callable[[], None]], AbstractContextManager[None]]


@dataclass
class Orders:
    """Gives orders in rank 0, and receives them in the others. No-op in a run of one process.

    With every order each process can raise a flag for rank 0.

    Args:
        ranks: The processes.
        timeout: Seconds of silence after which a process counts as lost.
        holds: Returns True if this process holds the run, for example because its card is hot.
        clock: Monotonic clock in seconds.
    """

    ranks: Ranks
    timeout: float = 600.0
    holds: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    others_hold: bool = field(default=False, init=False)
    """In rank 0: True if another process holds the run."""
    _last: float | None = field(default=None, init=False)
    _depth: int = field(default=0, init=False)
    """Nesting depth of :meth:`leading`."""

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Context of a run's steps in rank 0. The others receive orders inside, and leave at its end or at a stop; late
        ones count as lost.

        Raises:
            RankLostError: If another process does not answer.
        """
        self.ranks.meet()
        self.ranks.limit_patience(self.timeout)
        self.ranks.pulse.begin()
        self._last = self.clock()
        try:
            yield
            self.give("leave")
        except StopRequested:
            self.give("leave")
            raise
        finally:
            self.ranks.pulse.end()

    def alone(self) -> AbstractContextManager[None]:
        """Context in which rank 0 may take arbitrarily long. Outside it every wait for rank 0 is short; a long one
        means that it hangs."""
        return self.ranks.pulse.alone()

    @contextlib.contextmanager
    def leading(self, passes: Passes | None = None) -> Iterator[None]:
        """Context in which rank 0 runs the model alone, without gradients; may be nested.

        Args:
            passes: Context of passes of a sharded model; None if this process has it whole.
        """
        self._depth += 1
        try:
            with self.alone():
                if passes is None or self._depth > 1:
                    yield
                else:
                    with passes(lambda: self.give("forward")):
                        yield
        finally:
            self._depth -= 1

    def step(self, state: TrainState) -> None:
        """In rank 0: order the next optimizer step. No-op in the others, which are executing it.

        Raises:
            RankLostError: If another process does not answer.
        """
        if self.ranks.is_first:
            self.give("step", step=state.step, overrides=state.overrides)

    def give(self, name: OrderName, **args: Any) -> None:
        """Give an order, in rank 0 of several processes.

        Raises:
            RankLostError: If another process does not answer.
        """
        if not self.ranks.is_single:
            self._exchange({"do": name, **args})

    def look_after(self) -> None:
        """Order the others to wait and read their flags, if the last order was some time ago. Cheap; called wherever
        rank 0 works alone.

        Raises:
            RankLostError: If another process does not answer.
        """
        if self.ranks.is_single or self._last is None or not self.ranks.is_first:
            return
        if self.clock() - self._last >= min(self.timeout / _SIGNS, _MOST_SECONDS):
            self._exchange({"do": _WAIT})

    def take(self) -> tuple[str, dict[str, Any]]:
        """In the other ranks: wait for the next order; its name and arguments.

        Raises:
            RankLostError: If the first process does not answer.
        """
        while True:
            message = self._exchange(None)
            if (name := str(message.pop("do"))) != _WAIT:
                return name, message

    def _exchange(self, message: dict[str, Any] | None) -> dict[str, Any]:
        (held,) = self.ranks.any([not self.ranks.is_first and self.holds()], patient=True)
        self.others_hold = held
        found = self.ranks.broadcast(message)
        self._last = self.clock()
        self.ranks.pulse.beat()
        return found
