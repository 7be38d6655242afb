"""Connections that hold on to the server, on real sockets: deadlines, and admission."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import json
import socket
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import uvicorn

from core.config.schema import ChatSection
from core.serve.app import make_app
from core.serve.asgi import BODY_LIMIT, ApiError, Bodies
from core.serve.models import Models, ServedModel, SessionHolder
from core.serve.options import ServeOptions
from core.serve.queue import RequestQueue
from core.serve.server import Connection, Strangers, Watch
from tests.cases import cases
from tests.core.serve.conftest import RunningServer
from tests.core.serve.fake_server import PlayedSession
from tests.core.serve.raw import connect, head, post, question

KEY = "a-key-for-tests"


@dataclass
class Served:
    """A server within this process, whose watch looks on request."""

    watch: Watch
    connections: set[Any]
    address: tuple[str, int]
    began: float = field(default_factory=time.monotonic)

    async def connect(self, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(sent)
        return reader, writer

    def look(self, seconds: float) -> None:
        """Look as if so many seconds had gone by since the test began."""
        self.watch.look(list(self.connections), self.began + seconds)


@contextlib.asynccontextmanager
async def serving(room: int = 64) -> AsyncIterator[Served]:
    """A server with a played model."""
    strangers = Strangers(room)
    models = Models([ServedModel("run-1", SessionHolder(PlayedSession, lambda *_: None), "tuned", ChatSection(), 0)])
    queue = RequestQueue(8)
    protocol: Any = partial(Connection, strangers=strangers)
    app = make_app(models, queue, ServeOptions(("run-1",), key=KEY))
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server._serve([listener]))
    try:
        yield Served(Watch(strangers), server.server_state.connections, listener.getsockname())
    finally:
        server.should_exit = True
        queue.cancel_all()
        await running
        models.close()
        await asyncio.to_thread(queue.close)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition within the event loop."""
    deadline = time.monotonic() + 45
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.005)


def request(path: str = "/v1/models", method: str = "GET", *headers: str, key: str | None = KEY) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, *([f"Authorization: Bearer {key}"] if key else []), "", ""]).encode()


HEALTH = request("/health", key=None)
#: The beginning of a head, which stops.
PART = b"GET /v1/models HT"
CHUNKED = "Transfer-Encoding: chunked"
TELLS_JSON = "Content-Type: application/json"
ASKS = "/v1/chat/completions"


@cases(
    ("sent", "status"),
    [
        (HEALTH, 200),
        (HEALTH + PART, 200),
        (request("/health", "GET", CHUNKED, key=None) + b"3\r\nabc\r\n", 200),
        (request("/health", "HEAD", key=None), 200),
        (request("/health", "POST", "Content-Length: 900", key=None) + b"x", 405),
        (request("/health", "GET", "Content-Length: 5", key="another-key"), 200),
        (request(key=None) + PART, 401),
        (request(ASKS, "POST", "Content-Length: 900", TELLS_JSON, key="another-key") + b"{", 401),
        (request(ASKS, "POST", CHUNKED, key=None), 401),
        (request("/v1/models", "CONNECT", key=None), 401),
        (request(key=None) * 3, 401),
    ],
)
async def test_an_answer_without_the_key_is_the_last_on_its_connection(sent: bytes, status: int) -> None:
    async with serving() as served:
        reader, writer = await served.connect(sent)
        assert int((await reader.readline()).split()[1]) == status
        with contextlib.suppress(ConnectionResetError):
            assert (await reader.read()).count(b"HTTP/1.1 ") == 0
        await until(lambda: not served.connections, "the connection to be closed")
        writer.close()


@cases(
    ("sent", "answers", "kept", "closed"),
    [
        # Without the key: a head has 15 seconds.
        ([b""], 0, 14.0, 16.0),
        ([PART], 0, 14.0, 16.0),
        ([PART[:1], PART[1:2], PART[2:3]], 0, 14.0, 16.0),
        ([b"GET / HTTP/1.1\r\n", b"A: b\r\n", b"C: d\r\n"], 0, 14.0, 16.0),
        # With it 30; a body has 22, whether or not somebody reads it.
        ([request(), b""], 1, 29.0, 31.0),
        ([request(), PART, b"TP"], 1, 29.0, 31.0),
        ([request() + request() + PART], 2, 29.0, 31.0),
        ([request("/v1/models", "GET", CHUNKED), b"1\r\na\r\n", b"1\r\nb\r\n"], 1, 21.0, 23.0),
        ([request("/nowhere", "GET", "Content-Length: 9") + b"half"], 1, 21.0, 23.0),
        ([request(ASKS, "POST", "Content-Length: 9", TELLS_JSON) + b"half", b"."], 0, 21.0, 23.0),
        ([request(ASKS, "POST", CHUNKED, TELLS_JSON), b"5\r\n"], 0, 21.0, 23.0),
        ([request("/v1/models/run-1", "GET", "Expect: 100-continue", "Content-Length: 4")], 1, 21.0, 23.0),
    ],
)
async def test_a_connection_that_owes_a_request_is_closed_in_time(
    sent: list[bytes], answers: int, kept: float, closed: float
) -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        await until(lambda: served.connections, "the connection")
        (connection,) = served.connections
        served.look(0.0)
        found = b""
        for piece in sent:
            writer.write(piece)
            await until(partial(has_arrived, writer, connection), "the bytes to arrive")
        while found.count(b"HTTP/1.1 ") < answers:
            found += await reader.read(10_000)
        served.look(0.0)
        # Later input changes nothing.
        served.look(kept - 1)
        served.look(kept)
        assert not connection.transport.is_closing()
        served.look(closed)
        await until(lambda: not served.connections, "the connection to be closed")
        writer.close()


def has_arrived(writer: asyncio.StreamWriter, connection: Any) -> bool:
    """True if the server has read all written bytes."""
    client, server = writer.get_extra_info("socket"), connection.transport.get_extra_info("socket")
    return not (writer.transport.get_write_buffer_size() or count(client, termios.TIOCOUTQ)) and not count(
        server, termios.FIONREAD
    )


def count(sock: Any, question: int) -> int:
    """Number of bytes that a socket has to read, or that wait to be acknowledged."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), question, bytes(4)), sys.byteorder)


def asking(content: str, key: str = KEY, **fields: Any) -> bytes:
    """A whole question."""
    body = question(content, **fields)
    return request(ASKS, "POST", f"Content-Length: {len(body)}", TELLS_JSON, key=key) + body


async def test_a_client_that_does_not_read_is_closed_in_time() -> None:
    async with serving() as served:
        _, writer = await served.connect(asking("long 20000", stream=True))
        unsent = lambda: [each for each in served.connections if each.transport.get_write_buffer_size()]  # noqa: E731
        await until(unsent, "bytes that are not read")
        for seconds in (0.0, 59.0):
            served.look(seconds)
        assert not any(each.transport.is_closing() for each in served.connections)
        served.look(61.0)
        await until(lambda: not served.connections, "the connection to be closed")
        writer.close()


async def test_whoever_waits_for_an_answer_may_wait() -> None:
    async with serving() as served:
        waiting = [await served.connect(asking("hang")) for _ in range(3)]
        await until(lambda: sum(each.owed is None for each in served.connections) == 3, "the requests")
        for seconds in (0.0, 31.0, 3600.0):
            served.look(seconds)
        assert not any(each.transport.is_closing() for each in served.connections)
        for _, writer in waiting:
            writer.close()


async def test_a_clock_starts_anew_with_each_answer() -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        await until(lambda: served.connections, "the connection")
        (connection,) = served.connections
        for seconds in (0.0, 29.0, 58.0, 87.0):
            writer.write(request())
            assert (await reader.readline()).split()[1] == b"200"
            while (await reader.readline()).strip():
                pass
            await until(lambda: connection.owed is not None, "the next request to be owed")
            served.look(seconds)
        assert not connection.transport.is_closing()
        writer.close()


async def test_strangers_have_a_share_and_the_oldest_of_them_go() -> None:
    async with serving(room=8) as served:
        known_reader, known = await served.connect(request())
        assert (await known_reader.readline()).split()[1] == b"200"
        strangers = []
        for number in range(20):
            strangers.append(await served.connect(PART if number % 2 else b""))
            await until(lambda: len(served.connections) <= 7, "the oldest stranger to be closed")
        # Six of eight are strangers: the last six.
        left = {each.transport.get_extra_info("peername") for each in served.connections}
        assert left == {writer.get_extra_info("sockname") for writer in (known, *(each for _, each in strangers[-6:]))}
        # Whoever shows the key at once is let in, and is a stranger no more.
        others = [await served.connect(request()) for _ in range(6)]
        for reader, _ in others:
            assert (await reader.readline()).split()[1] == b"200"
        known.write(request())
        assert b"200 OK" in await known_reader.readuntil(b"200 OK")
        assert len(served.connections) <= 8
        for writer in (known, *(each for _, each in [*strangers, *others])):
            writer.close()


async def test_where_all_have_the_key_a_further_one_is_refused_in_words() -> None:
    async with serving(room=3) as served:
        open_ones = [await served.connect(request()) for _ in range(3)]
        for reader, _ in open_ones:
            assert (await reader.readline()).split()[1] == b"200"
        reader, writer = await served.connect(request())
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"too_many_connections" in answer
        open_ones.pop()[1].close()
        await until(lambda: len(served.connections) == 2, "room")
        again, last = await served.connect(request())
        assert (await again.readline()).split()[1] == b"200"
        for _, each in (*open_ones, (again, last), (reader, writer)):
            each.close()


def test_a_flood_of_strangers_leaves_room_for_clients_with_the_key(serve: Callable[..., RunningServer]) -> None:
    server = serve(files=200)
    body = question("say I am in")
    with contextlib.ExitStack() as stack:
        for number in range(400):
            connection = stack.enter_context(connect(server))
            connection.sendall((PART, b"", HEALTH + PART)[number % 3])
            if number % 40 == 39:
                assert post(server, body)[0] == 200, number
        status, _, answer = post(server, body)
        assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, "I am in")


# A client that has shut its writing side.


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """The answer on a connection, by the rules of HTTP."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


@cases(
    ("path", "content", "more", "said"),
    [
        ("/v1/models", "", (), b'"run-1"'),
        ("/v1/models", "", ("Connection: close",), b'"run-1"'),
        ("/nowhere", "", (), b"There is nothing"),
        (ASKS, "say half and half", (), b"half and half"),
        (ASKS, "say half and half", ("Connection: close",), b"half and half"),
        (ASKS, "refuse", (), b"too long"),
    ],
)
@cases("stream", [False, True])
def test_a_client_that_sends_no_more_gets_its_answer(
    played: RunningServer, path: str, content: str, more: tuple[str, ...], said: bytes, stream: bool
) -> None:
    body = question(content, stream=stream) if content else b""
    headers = [f"Content-Length: {len(body)}", TELLS_JSON, *more]
    with connect(played) as connection:
        connection.sendall(request(path, "POST" if body else "GET", *headers, key=played.key) + body)
        connection.shutdown(socket.SHUT_WR)
        _, answer = read_answer(connection)
        events = [json.loads(line[6:]) for line in answer.split(b"\n\n") if line.startswith(b"data: {")]
        found = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
        assert said.decode() in (found or answer.decode())
        assert connection.recv(1) == b"", "nothing more can be asked"


def test_pipelined_requests_before_the_end_are_all_answered(played: RunningServer) -> None:
    ask = asking("say one", played.key)
    with connect(played) as connection:
        connection.sendall(ask + request(key=played.key) + ask + PART)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            found = file.read()
    assert found.count(b"HTTP/1.1 200") == 3
    assert (found.count(b'"one"'), found.count(b'"list"')) == (2, 1)


def test_a_client_that_sends_no_more_waits_its_turn(serve: Callable[..., RunningServer]) -> None:
    server = serve()
    hang, asked = question("hang", stream=True), question("say my turn")
    with connect(server) as first, connect(server) as second:
        first.sendall(head(server, Content_Length=str(len(hang))) + hang)
        assert first.recv(12) == b"HTTP/1.1 200"
        second.sendall(head(server, Content_Length=str(len(asked))) + asked)
        second.shutdown(socket.SHUT_WR)
        # It is asked whether it is still there.
        assert second.recv(12) == b"HTTP/1.1 100"
        second.recv(13)
        first.shutdown(socket.SHUT_RDWR)
        status, answer = read_answer(second)
    assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, "my turn")


@cases("stream", [False, True])
@cases("reads", [False, True])
def test_a_client_that_has_gone_is_noticed_by_its_silence(played: RunningServer, stream: bool, reads: bool) -> None:
    """A client that has read everything leaves an end of input, and so does a client that waits for more."""
    body = question("hang", stream=stream)
    with connect(played) as connection:
        connection.sendall(head(played, Content_Length=str(len(body))) + body)
        if stream:
            with connection.makefile("rb") as file:
                while reads and b"\xe2\x80\xa6" not in file.readline() and b"\\u2026" not in file.peek():
                    pass
    answer = played.client(timeout=60).completions.create(model="tiny", prompt="say next")
    assert answer.choices[0].text == "next"


def test_a_client_of_http_1_0_that_ends_its_input_is_taken_for_gone(played: RunningServer) -> None:
    """HTTP/1.0 has nothing that could be sent to it before the answer."""
    body = question("hang")
    with connect(played) as connection:
        sent = head(played, Content_Length=str(len(body))).replace(b"HTTP/1.1", b"HTTP/1.0") + body
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


# Bodies that are arriving.


def test_bodies_that_never_come_take_no_place(serve: Callable[..., RunningServer]) -> None:
    server = serve(queue=1)
    with contextlib.ExitStack() as stack:
        for number in range(6):
            connection = stack.enter_context(connect(server))
            part = b"{" if number % 2 else b""
            connection.sendall(head(server, Content_Length="900") + part)
        for _ in range(3):
            assert post(server, question("say here"))[0] == 200


class Sender:
    """A client of :class:`Bodies`, piece by piece."""

    def __init__(self, bodies: Bodies) -> None:
        self._pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.task = asyncio.create_task(bodies.collect(self._pieces.get))

    async def send(self, piece: bytes, *, more: bool = True) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": piece, "more_body": more})
        await until(lambda: self._pieces.empty() or self.task.done(), "the piece to be read")
        await asyncio.sleep(0)


async def test_the_slowest_bodies_make_room_for_others() -> None:
    bodies = Bodies(limit=BODY_LIMIT + 100)
    slow, small, quick = (Sender(bodies) for _ in range(3))
    await slow.send(b"x" * 60)
    await small.send(b"x" * 50)
    await quick.send(b"y" * BODY_LIMIT)
    with pytest.raises(ApiError, match="Too many requests are arriving") as refused:
        await slow.task
    assert (refused.value.status, refused.value.code) == (429, "too_many_requests")
    await small.send(b"!", more=False)
    await quick.send(b"", more=False)
    assert (await small.task, await quick.task) == (b"x" * 50 + b"!", b"y" * BODY_LIMIT)
    # A body that arrived or was refused takes no room.
    another = Sender(bodies)
    await another.send(b"z" * BODY_LIMIT, more=False)
    assert len(await another.task) == BODY_LIMIT


async def test_a_body_has_its_time() -> None:
    bodies = Bodies(seconds=0.05)
    sender = Sender(bodies)
    await sender.send(b"half")
    with pytest.raises(ApiError, match=r"did not arrive within 0\.05 s") as refused:
        await sender.task
    assert refused.value.status == 408
