"""Many clients, and clients that go, do not read, or do not speak: others are answered all the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.core.serve.conftest import RunningServer
from tests.core.serve.raw import connect, head, post, question
from tests.waiting import wait_for

#: Requests of a thousand clients, and their possible statuses.
FULL = {429, 503}
SENT: list[tuple[bytes, dict[str, Any], set[int]]] = [
    (question("say hello there"), {}, {200, *FULL}),
    (question("say hello there", stream=True), {}, {200, *FULL}),
    (question("long 20", stream=True), {}, {200, *FULL}),
    (question("refuse"), {}, {400, *FULL}),
    (question("mistake"), {}, {500, *FULL}),
    (question("say x", model="gpt-9"), {}, {404, *FULL}),
    (question("say x", n=0), {}, {400, *FULL}),
    (b"{" * 1000, {}, {400, *FULL}),
    (b"[" * 100_000, {}, {400, *FULL}),
    (question("say x"), {"Host": "evil.example"}, {421, *FULL}),
    (question("say x"), {"Authorization": "Bearer nonsense"}, {401, *FULL}),
    (question("say x"), {"Content_Type": "text/plain"}, {415, *FULL}),
    (b"x", {"Content_Encoding": "gzip"}, {415, *FULL}),
]


async def flood(server: RunningServer, count: int) -> list[tuple[int, set[int]]]:
    """Send ``count`` requests at once, some of which go without an answer; the statuses, with the allowed ones."""
    dice = random.Random(1)

    async def one(number: int) -> tuple[int, set[int]]:
        body, changes, wanted = SENT[number % len(SENT)]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(head(server, Content_Length=str(len(body)), Connection="close", **changes) + body)
            if dice.random() < 0.1:
                return 0, {0}  # it goes away
            line = await reader.readline()
            status = int(line.split()[1]) if line else 503
            if status == 200 and dice.random() < 0.9:
                await reader.read()
            return status, wanted
        except (ConnectionError, asyncio.IncompleteReadError):
            return 503, wanted
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    return list(await asyncio.gather(*(one(number) for number in range(count))))


def test_a_thousand_clients_at_once(serve: Callable[..., RunningServer]) -> None:
    server = serve()
    began = time.monotonic()
    found = asyncio.run(asyncio.wait_for(flood(server, 1000), 60))
    assert [pair for pair in found if pair[0] not in pair[1]] == []
    statuses = Counter(status for status, _ in found)
    # Every kind of answer was among them, and the server is as before.
    assert {200, 400, 401, 404, 415, 421} <= set(statuses), statuses
    assert time.monotonic() - began < 60
    client = server.client()
    counts = client.completions.create(model="tiny", prompt="counts").choices[0].text
    assert json.loads(counts)[1] == 1, "one answer is generated at a time"


def test_those_who_wait_are_counted_and_more_are_refused(serve: Callable[..., RunningServer]) -> None:
    server = serve(queue=2)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connect(server)) for _ in range(3)]
        body = question("hang", stream=True)
        for connection in waiting:
            connection.sendall(head(server, Content_Length=str(len(body))) + body)
        assert waiting[0].recv(12) == b"HTTP/1.1 200"

        def refused() -> tuple[int, dict[str, str], bytes] | None:
            found = post(server, b"{}")
            return found if found[0] == 429 else None

        refusal = wait_for(refused, 10, "the queue to be full")
        assert refusal is not None
        assert (refusal[1]["retry-after"], json.loads(refusal[2])["error"]["code"]) == ("5", "too_many_requests")
    # They have gone, from the queue as well.
    answer = server.client().completions.create(model="tiny", prompt="say I am next")
    assert answer.choices[0].text == "I am next"


def test_a_client_that_does_not_read_holds_up_nobody(played: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        body = question("long 5000", stream=True)
        for _ in range(5):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", played.port))
            connection.sendall(head(played, Content_Length=str(len(body))) + body)
        answer = played.client(timeout=30).completions.create(model="tiny", prompt="say not held up")
        assert answer.choices[0].text == "not held up"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_all(serve: Callable[..., RunningServer], number: signal.Signals) -> None:
    server = serve()
    client = server.client()
    stream = client.chat.completions.create(model="run-1", messages=[{"role": "user", "content": "hang"}], stream=True)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    with connect(server):  # a connection on which nothing is said
        server.process.send_signal(number)
        with pytest.raises(openai.APIError, match="The server is ending"):
            list(stream)
        assert server.process.wait(60) == 0
    assert server.process.stdout is not None
    assert server.process.stderr is not None
    assert server.process.stdout.read() == "ended\n"
    assert server.process.stderr.read() == ""
