"""The lead of the first process: forward passes that it runs alone, which the others lend their shares to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from core.worker.distributed.orders import Orders

#: A context in which passes run alone; it is given what to call before each of them.
Announced = Callable[[Callable[[], None]], AbstractContextManager[None]]


@dataclass
class Lead:
    """Passes of the first process alone, each of which the others are told of; contexts within each other are one."""

    _orders: Orders | None = field(default=None, init=False)
    _depth: int = field(default=0, init=False)

    def connect(self, orders: Orders) -> None:
        """Have the other processes told by these orders."""
        self._orders = orders

    @contextlib.contextmanager
    def taken(self, passes: Announced | None) -> Iterator[None]:
        """A context in which the first process runs the model alone, without gradients.

        Args:
            passes: Where the model is shared out; None where this process has it whole, and nobody is told.

        Raises:
            ValueError: If the others are not connected yet.
        """
        if self._orders is None:
            raise ValueError("The others are not connected yet.")
        orders = self._orders
        self._depth += 1
        try:
            if self._depth > 1 or passes is None:
                yield
            else:
                with passes(lambda: orders.give("forward")):
                    yield
        finally:
            self._depth -= 1
