"""Connections that hold on to the server without using it: closed, so that there is room for others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any, Protocol

#: Seconds for the head of a request to arrive on a new connection.
HEAD_SECONDS = 15.0
#: Seconds that a client may take to read what has been sent to it.
READ_SECONDS = 60.0
#: Seconds between two looks.
LOOK_SECONDS = 1.0


class Connection(Protocol):
    """A connection of uvicorn, as far as it is used here."""

    transport: asyncio.Transport
    cycle: Any
    """The present or last request; None before the first."""
    flow: Any


class Watch:
    """Closes connections on which no request comes, and those whose client does not read.

    uvicorn has time limits for neither. A stream that is not read costs nobody else any time, but its answer stays in
    memory.

    Args:
        head_seconds: Time for the head of the first request.
        read_seconds: Time for a client to read.
    """

    def __init__(self, head_seconds: float = HEAD_SECONDS, read_seconds: float = READ_SECONDS) -> None:
        self._head_seconds = head_seconds
        self._read_seconds = read_seconds
        self._silent: dict[Connection, float] = {}
        self._stuck: dict[Connection, tuple[int, float]] = {}

    async def watch(self, connections: Collection[Any]) -> None:
        """Look at the connections until cancelled.

        Args:
            connections: The server's, which change.
        """
        while True:
            self.look(list(connections), time.monotonic())
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, connections: Collection[Connection], now: float) -> None:
        """Close what has taken too long.

        Args:
            connections: Those that are open.
            now: The present, by a clock that nobody sets.
        """
        self._silent = {
            connection: self._silent.get(connection, now) for connection in connections if connection.cycle is None
        }
        late = [connection for connection, since in self._silent.items() if now - since > self._head_seconds]
        stuck: dict[Connection, tuple[int, float]] = {}
        for connection in connections:
            unsent = connection.transport.get_write_buffer_size()
            if unsent:
                before, since = self._stuck.get(connection, (unsent, now))
                stuck[connection] = (unsent, since if unsent >= before else now)
        self._stuck = stuck
        late += [connection for connection, (_, since) in stuck.items() if now - since > self._read_seconds]
        for connection in late:
            connection.transport.abort()
