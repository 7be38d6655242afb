"""The server: listens, answers, and gives everything back at its end."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn

from core.directories import Progress
from core.serve.app import make_app
from core.serve.connections import IDLE_SECONDS, Connection, Strangers, Watch
from core.serve.listen import BACKLOG, address_of, open_listener, remove_socket
from core.serve.middleware import HEAD_BYTES
from core.serve.models import Models, open_models
from core.serve.options import ServeOptions, ServerAddress
from core.serve.queue import RequestQueue

#: Most connections at a time, if the system allows as many files.
CONNECTIONS = 2048
#: Seconds for answers to be broken off at the end.
_ENDING_SECONDS = 2
_POLL_SECONDS = 0.02


def serve(options: ServeOptions, ready: Callable[[ServerAddress], None], progress: Progress) -> None:
    """Serve until SIGINT or SIGTERM; for the main thread of a process.

    Models are loaded with the first question to them.

    Args:
        options: Where, what and for whom.
        ready: Called once clients can connect.
        progress: Told what is being loaded; a sentence is a warning.

    Raises:
        UserError: If a target cannot be found, or the address cannot be listened on.
    """
    serve_models(open_models(options.targets, progress), options, ready)


def serve_models(models: Models, options: ServeOptions, ready: Callable[[ServerAddress], None]) -> None:
    """Serve models that are open, and close them at the end; the rest as for :func:`serve`."""
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
            remove_socket(options.uds)
        # The engines first: an answer that is being generated ends with them.
        models.close()
        queue.close()


def _room_for_connections() -> int:
    """Number of connections that there is room for; the system is asked for more first.

    Each is an open file. As many again are left for all other files, and for connections that have been accepted and
    not been looked at, or closed and not been given back.
    """
    wanted = 2 * CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return min(CONNECTIONS, soft // 2) if soft != resource.RLIM_INFINITY else CONNECTIONS


async def _run(
    server: uvicorn.Server,
    listener: socket.socket,
    watch: Watch,
    ready: Callable[[], None],
    queue: RequestQueue,
) -> None:
    """Run the server until a signal comes."""
    # uvicorn raises the signal that ended it once more, for handlers that were there before.
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
    """Tell when clients can connect, and break answers off when the end has been asked for."""
    while not server.started:
        await asyncio.sleep(_POLL_SECONDS)
    ready()
    while not server.should_exit:
        await asyncio.sleep(_POLL_SECONDS)
    queue.cancel_all()
