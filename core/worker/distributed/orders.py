"""Orders: what the first process tells the others to do next, so that all do the same at the same moment.

The first process alone decides: what a command asks for, whether a limit is reached, whether an evaluation is due. The
others carry out orders until one tells them to leave. While it does something alone (a pause, an evaluation, a
checkpoint) they wait for it without a limit; where it can, it tells them to wait every now and then, and hears so
whether they are there and what they want.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from core.worker.distributed.ranks import Ranks

#: ``step``: one optimizer step · ``leave``: the end. The others are there for strategies that share the weights out:
#: ``forward``: lend the first process the shares for a pass · ``save``, ``result``: send it them.
OrderName = Literal["step", "leave", "forward", "save", "result"]
_WAIT = "wait"
#: Orders to wait in the time after which a process is taken for lost, and the most seconds between two of them.
_SIGNS, _MOST_SECONDS = 10.0, 5.0


@dataclass(frozen=True)
class Order:
    """An order of the first process: what the others are to do next."""

    name: str
    args: dict[str, Any]


@dataclass
class Orders:
    """Gives orders in the first process, and takes them in the others.

    With every order each process can raise a flag, which the first one hears.

    Args:
        ranks: The processes.
        timeout: Seconds after which one that says nothing is taken for lost.
        holds: Whether this process wants no step now, for the heat of its card, say.
        clock: Seconds that only ever go up.
    """

    ranks: Ranks
    timeout: float = 600.0
    holds: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    others_hold: bool = field(default=False, init=False)
    """In the first process: whether any other wants no step now."""
    _last: float | None = field(default=None, init=False)

    def begin(self) -> None:
        """In the first process: the others are about to take orders, and are taken for lost where they are not there in
        time from now on."""
        self.ranks.limit_patience(self.timeout)
        self.ranks.pulse.begin()
        self._last = self.clock()

    def close(self) -> None:
        """In the first process: no orders follow; what it still does takes as long as it takes."""
        self.ranks.pulse.end()

    def alone(self) -> AbstractContextManager[None]:
        """Inside, the first process does something that the others wait for, for as long as it takes. Outside it is
        soon done with whatever it does: where they wait in vain, it hangs."""
        return self.ranks.pulse.alone()

    def give(self, name: OrderName, **args: Any) -> None:
        """Give an order, in the first process of several; nothing in the only one.

        Raises:
            RankLostError: If another process does not answer.
        """
        if not self.ranks.is_single:
            self._exchange({"do": name, **args})

    def look_after(self) -> None:
        """Tell the others to wait, and hear their flags, if they have not been told anything for a while. Cheap; called
        wherever the first process waits alone, or goes on after a while.

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
