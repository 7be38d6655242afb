"""Orders of the first process of a run to the others, so that all do the same at the same moment.

The first process alone decides: on commands, on limits, on the next evaluation. The others carry out its orders until
one of them is to leave. While it works alone (a pause, an evaluation, a checkpoint) they wait for it without a limit;
every now and then it orders them to wait, and hears so that they are there, and whether one of them holds the run.
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

#: ``step``: one optimizer step · ``leave``: the end. The others are for strategies that share the weights out:
#: ``forward``: take part in a forward pass of the first process · ``save``, ``result``: send it the shares.
OrderName = Literal["step", "leave", "forward", "save", "result"]
_WAIT = "wait"
#: Orders to wait in the time after which a process counts as lost, and the most seconds between two of them.
_SIGNS, _MOST_SECONDS = 10.0, 5.0

#: Forward passes of the first process alone; the argument is called before each of them.
Passes = Callable[[Callable[[], None]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Order:
    """An order of the first process."""

    name: str
    args: dict[str, Any]


@dataclass
class Orders:
    """Gives orders in the first process, and takes them in the others. In a run of one process it does nothing.

    With every order each process can raise a flag, which the first one hears.

    Args:
        ranks: The processes.
        timeout: Seconds of silence after which a process counts as lost.
        holds: Whether this process holds the run, as for the heat of its card.
        clock: Monotonic seconds.
    """

    ranks: Ranks
    timeout: float = 600.0
    holds: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    others_hold: bool = field(default=False, init=False)
    """In the first process: whether another one holds the run."""
    _last: float | None = field(default=None, init=False)
    _depth: int = field(default=0, init=False)
    """Contexts of :meth:`leading` within each other."""

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """The steps of a run in its first process. The others take orders inside, and leave at its end or at a stop;
        those that are late count as lost.

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
        """Inside, the others wait for the first process as long as it takes. Outside it is soon done with anything:
        where they wait in vain, it hangs."""
        return self.ranks.pulse.alone()

    @contextlib.contextmanager
    def leading(self, passes: Passes | None = None) -> Iterator[None]:
        """Inside, the first process runs the model alone, without gradients; may be nested.

        Args:
            passes: The passes of a model whose weights are shared out; None where this process has it whole.
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
        """In the first process: order the next optimizer step. Nothing in the others, which are at it.

        Raises:
            RankLostError: If another process does not answer.
        """
        if self.ranks.is_first:
            self.give("step", step=state.step, overrides=state.overrides)

    def give(self, name: OrderName, **args: Any) -> None:
        """Give an order, in the first process of several.

        Raises:
            RankLostError: If another process does not answer.
        """
        if not self.ranks.is_single:
            self._exchange({"do": name, **args})

    def look_after(self) -> None:
        """Order the others to wait, and hear their flags, if the last order is a while ago. Cheap; called wherever the
        first process works alone.

        Raises:
            RankLostError: If another process does not answer.
        """
        if self.ranks.is_single or self._last is None or not self.ranks.is_first:
            return
        if self.clock() - self._last >= min(self.timeout / _SIGNS, _MOST_SECONDS):
            self._exchange({"do": _WAIT})

    def take(self) -> Order:
        """In the other processes: wait for the next order.

        Raises:
            RankLostError: If the first process does not answer.
        """
        while True:
            message = self._exchange(None)
            if (name := str(message.pop("do"))) != _WAIT:
                return Order(name, message)

    def _exchange(self, message: dict[str, Any] | None) -> dict[str, Any]:
        (held,) = self.ranks.any([not self.ranks.is_first and self.holds()], patient=True)
        self.others_hold = held
        found = self.ranks.broadcast(message)
        self._last = self.clock()
        self.ranks.pulse.beat()
        return found
