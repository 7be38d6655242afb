"""The server: its connections, its answers, and its end.

Room is kept for connections that have shown the key; a connection that owes something for too long is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from core.directories import Progress
from core.serve.app import HEAD_BYTES, make_app
from core.serve.asgi import BODY_SECONDS, KEY_SHOWN, MEANS_NOTHING
from core.serve.models import Models, open_models
from core.serve.options import BACKLOG, ServeOptions, ServerAddress, address_of, open_listener
from core.serve.queue import RequestQueue

#: Seconds for a head to arrive on a connection that has not shown the key.
HEAD_SECONDS = 15.0
#: Seconds for the next head on a kept connection. Most clients keep connections open for half as long.
IDLE_SECONDS = 30
#: Seconds that a client may take to read the bytes sent to it.
READ_SECONDS = 60.0
#: Seconds between two looks.
LOOK_SECONDS = 1.0
#: Seconds between two lines to a client that sends no more, to find out if it is still connected.
PROBE_SECONDS = 5.0
#: Largest share of all connections for clients without the key.
_STRANGERS = 3 / 4


class Connection(H11Protocol):
    """A connection of uvicorn, registered with :class:`Strangers`, whose client may half-close it.

    uvicorn takes the end of a client's input for the end of the client. But the client may have shut only its writing
    side, as ``nc`` does, and wait for its answer; a program that has ended looks the same. They differ in the system's
    reply to data: a reset. So an informational response (100, which clients skip: RFC 9110, section 15.2) or, within a
    stream, a comment is sent at the end of the input and now and then, until the answer is complete.

    Args:
        strangers: The connections that have not shown the key.
        args: As uvicorn gives them.
        options: The same.
    """

    def __init__(self, *args: Any, strangers: Strangers, **options: Any) -> None:
        super().__init__(*args, **options)
        self._strangers = strangers
        self._probed: float | None = None
        # Each request gets a copy of it.
        self.app_state = {**self.app_state, KEY_SHOWN: partial(strangers.admit, self)}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Add it to the strangers."""
        super().connection_made(transport)
        self._strangers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove it."""
        self._strangers.discard(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's gives None, which closes
        """Keep the connection open if a request has arrived whole and is not answered."""
        if self._probed is None and self._owes_answer:
            self._probed = time.monotonic()
            return self._probe()
        return self._probed is not None

    def on_response_complete(self) -> None:
        """Continue with the next request; close after the last request of a client that sends no more."""
        super().on_response_complete()
        if self._probed is not None and not self._owes_answer:
            self.transport.close()

    @property
    def owed(self) -> tuple[object, object] | None:
        """The part of a request that the client still owes, and the request; None if it has sent a whole one."""
        state = self.conn.their_state
        return (state, self.cycle) if state in (h11.IDLE, h11.SEND_BODY) else None

    def has_gone(self, now: float) -> bool:
        """True if a client that sends no more has gone; it is probed now and then.

        Args:
            now: The present, by a monotonic clock.
        """
        if self._probed is None or self.transport.is_closing():
            return False
        sock = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return True
        if now - self._probed >= PROBE_SECONDS:
            self._probed = now
            self._probe()
        return False

    @property
    def _owes_answer(self) -> bool:
        return self.owed is None and self.cycle is not None and not self.cycle.response_complete

    def _probe(self) -> bool:
        """Send bytes without meaning; False if there are none, as in HTTP/1.0."""
        if self.cycle.response_started:
            nothing = self.scope["state"].get(MEANS_NOTHING, b"")
            self.transport.write(self.conn.send(h11.Data(data=nothing)) or b"")
            return True
        if self.scope["http_version"] != "1.1":
            return False
        response = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        self.transport.write(self.conn.send(response) or b"")
        return True


class Strangers:
    """Connections that have not shown the key, and the number of connections that have.

    They may have a share of all connections. If there are more, or no room is left, the oldest of them is closed: a
    client that sends its key at once is let in, however many connections others open and leave.

    Args:
        room: Most connections.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        #: In order of arrival.
        self._waiting: dict[Connection, None] = {}
        self._known: set[Connection] = set()

    def __contains__(self, connection: object) -> bool:
        return connection in self._waiting

    def add(self, connection: Connection) -> None:
        """Add a connection that was just made."""
        self._waiting[connection] = None
        most = max(1, min(int(self._room * _STRANGERS), self._room - len(self._known)))
        while len(self._waiting) > most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.transport.abort()

    def admit(self, connection: Connection) -> bool:
        """Take out a connection that has shown the key; False if there is no room for it."""
        if connection in self._waiting and len(self._known) < self._room:
            del self._waiting[connection]
            self._known.add(connection)
        return connection in self._known

    def discard(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self._waiting.pop(connection, None)
        self._known.discard(connection)


class Watch:
    """Closes connections whose client owes a request, or part of one, for too long, does not read, or has gone.

    Only its pending duty counts, not its past. uvicorn limits neither. A stream that is not read costs nobody else any
    time, but its answer stays in memory.

    Args:
        strangers: The connections that have not shown the key.
    """

    def __init__(self, strangers: Strangers) -> None:
        self._strangers = strangers
        self._owing: dict[Connection, tuple[object, float]] = {}
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
        """Close connections that have taken too long.

        Args:
            connections: The open connections.
            now: The present, by a monotonic clock.
        """
        self._owing = {each: self._owed_since(each, now) for each in connections if each.owed is not None}
        late = [each for each, (_, since) in self._owing.items() if now - since > self._limit(each)]
        stuck: dict[Connection, tuple[int, float]] = {}
        for connection in connections:
            unsent = connection.transport.get_write_buffer_size()
            if unsent:
                before, since = self._stuck.get(connection, (unsent, now))
                stuck[connection] = (unsent, since if unsent >= before else now)
        self._stuck = stuck
        late += [connection for connection, (_, since) in stuck.items() if now - since > READ_SECONDS]
        late += [connection for connection in connections if connection.has_gone(now)]
        for connection in late:
            connection.transport.abort()

    def _owed_since(self, connection: Connection, now: float) -> tuple[object, float]:
        owed = connection.owed
        before, since = self._owing.get(connection, (owed, now))
        return owed, since if before == owed else now

    def _limit(self, connection: Connection) -> float:
        if connection.conn.their_state is h11.SEND_BODY:
            # Longer than the limit of the body's reader, which answers first.
            return BODY_SECONDS + 2
        return HEAD_SECONDS if connection in self._strangers else IDLE_SECONDS


#: Most connections at a time, if the system allows as many files.
CONNECTIONS = 2048
#: Seconds for answers to be broken off at the end.
_ENDING_SECONDS = 2
_POLL_SECONDS = 0.02


def serve(options: ServeOptions, ready: Callable[[ServerAddress], None], progress: Progress) -> None:
    """Serve until SIGINT or SIGTERM; for the main thread of a process.

    Models are loaded with the first question to them.

    Args:
        options: Address, models and key.
        ready: Called once clients can connect.
        progress: Receives the name of the file that is being loaded; a sentence is a warning.

    Raises:
        UserError: If a target cannot be found, or the address cannot be listened on.
    """
    serve_models(open_models(options.targets, progress), options, ready)


def serve_models(models: Models, options: ServeOptions, ready: Callable[[ServerAddress], None]) -> None:
    """Serve open models, and close them at the end; otherwise as :func:`serve`."""
    try:
        listener = open_listener(options)
    except BaseException:
        models.close()
        raise
    queue = RequestQueue(options.queue)
    try:
        url = address_of(listener, options)
        ids = tuple(model.id for model in models.all)
        strangers = Strangers(_room_for_connections())
        protocol: Any = partial(Connection, strangers=strangers)
        config = uvicorn.Config(
            make_app(models, queue, options),
            http=protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=HEAD_BYTES,
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=_ENDING_SECONDS,
        )
        address = ServerAddress(url, options.key, ids)
        asyncio.run(_run(uvicorn.Server(config), listener, Watch(strangers), lambda: ready(address), queue))
    finally:
        listener.close()
        if options.uds is not None:
            with contextlib.suppress(OSError):
                options.uds.unlink()
        # The engines first: an answer that is being generated ends with them.
        models.close()
        queue.close()


def _room_for_connections() -> int:
    """Number of possible connections, after raising the limit of open files.

    Each is an open file. As many again are left for all other files, and for connections accepted but not handled yet,
    or closed but not released yet.
    """
    wanted = 2 * CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return min(CONNECTIONS, soft // 2) if soft != resource.RLIM_INFINITY else CONNECTIONS


async def _run(
    server: uvicorn.Server, listener: socket.socket, watch: Watch, ready: Callable[[], None], queue: RequestQueue
) -> None:
    """Run the server until a signal comes."""
    # uvicorn raises the signal that ended it once more, for the former handlers.
    former = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    loop = asyncio.get_running_loop()
    beside = [
        loop.create_task(watch.watch(server.server_state.connections)),
        loop.create_task(_tell(server, ready, queue)),
    ]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        for number, handler in former.items():
            signal.signal(number, handler)


async def _tell(server: uvicorn.Server, ready: Callable[[], None], queue: RequestQueue) -> None:
    """Report that clients can connect, and break off answers at the end."""
    while not server.started:
        await asyncio.sleep(_POLL_SECONDS)
    ready()
    while not server.should_exit:
        await asyncio.sleep(_POLL_SECONDS)
    queue.cancel_all()
