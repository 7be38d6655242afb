from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.errors import UserError
from core.runs.control import client as client_module
from core.runs.control import protocol
from core.runs.control.client import ControlClient
from core.runs.record.state import RunState
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.runs.helpers import live_state, there
from tests.waiting import wait_for

Handler = Callable[[socket.socket, dict[str, Any]], None]


class Server(socketserver.UnixStreamServer):
    """A control socket whose answers a test decides; it reads one request of each connection."""

    def __init__(self, run: Run, handler: Handler) -> None:
        super().__init__(str(run.socket_path), socketserver.BaseRequestHandler)
        self.requests: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self._handler = handler
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        with request.makefile("rb") as lines:
            if line := lines.readline():
                self.requests.append(json.loads(line))
                self._handler(request, self.requests[-1])
        self.ended.set()


Serve = Callable[[Handler], Server]


@pytest.fixture
def live(run: Run) -> Run:
    """A run that trains, in this very process."""
    live_state().write(run.state_path)
    return run


def change_state(run: Run, **changes: object) -> None:
    recorded = there(RunState.read(run.state_path))
    dataclasses.replace(recorded, **changes).write(run.state_path)  # type: ignore[arg-type]


@pytest.fixture
def serve(live: Run) -> Iterator[Serve]:
    servers: list[Server] = []

    def start(handler: Handler) -> Server:
        """A server in the place of the one before it."""
        live.socket_path.unlink(missing_ok=True)
        servers.append(Server(live, handler))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def say(connection: socket.socket, **message: Any) -> None:
    connection.sendall(protocol.encode_message(message))


def say_nothing(connection: socket.socket, _: dict[str, Any]) -> None:
    """Wait until the client has gone."""
    connection.settimeout(20)
    assert connection.recv(1) == b""


def message_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


@cases(
    ("fields", "hint"),
    [
        ({"action": "resume"}, "Let it go on first: 'localtune-tui resume {run}'."),
        ({"action": "reboot"}, "Let it go on first."),
        ({"action": ["resume"]}, "Let it go on first."),
        ({}, "Let it go on first."),
    ],
)
def test_a_hint_names_its_action(live: Run, serve: Serve, fields: dict[str, Any], hint: str) -> None:
    refusal = {"ok": False, "error": "The run is parked.", "hint": "Let it go on first.", **fields}
    serve(lambda connection, request: say(connection, id=request["id"], **refusal))
    told = message_of(lambda: ControlClient(live).request("set"))
    assert told == f"The run is parked. {hint.format(run=live.id)}"
    by_key = ControlClient(live, ways=lambda action, _: f"the key of {action}")
    shown = message_of(lambda: by_key.request("set"))
    assert shown.endswith("Let it go on first: the key of resume." if "'" in hint else "Let it go on first.")


def test_a_request_gets_its_own_answer(live: Run, serve: Serve) -> None:
    def handler(connection: socket.socket, request: dict[str, Any]) -> None:
        say(connection, id="somebody else", ok=True, step=1)
        # In two pieces, the cut within a line.
        line = protocol.encode_message({"id": request["id"], "ok": True, "step": 7, "state": "paused"})
        connection.sendall(line[:9])
        connection.sendall(line[9:])

    server = serve(handler)
    client = ControlClient(live)
    assert client.request("pause", reason="heat") == {"step": 7, "state": "paused"}
    assert server.requests[0]["command"] == "pause"
    assert server.requests[0]["args"] == {"reason": "heat"}
    assert client.request("pause")["step"] == 7
    assert server.requests[0]["id"] != server.requests[1]["id"]


def test_a_refusal_is_the_workers_sentence_made_safe(live: Run, serve: Serve) -> None:
    serve(lambda c, r: say(c, id=r["id"], ok=False, error="It is\x1b[2J not paused.", hint="Pause\nit."))
    with pytest.raises(UserError) as caught:
        ControlClient(live).request("resume")
    assert caught.value.message == "It is\ufffd[2J not paused."
    assert caught.value.hint == "Pause⏎it."
    serve(lambda c, _: say(c, id=None, ok=False, error=5))
    assert "refused" in message_of(lambda: ControlClient(live).request("resume"))


def test_generation_streams_and_ends_with_the_answer(live: Run, serve: Serve) -> None:
    def handler(connection: socket.socket, request: dict[str, Any]) -> None:
        for token in ("Hel", "lo\x1b"):
            say(connection, id=request["id"], token=token)
        say(connection, id=request["id"], ok=True, text="Hello\x1b", tokens=2)

    server = serve(handler)
    parts = list(ControlClient(live).generate({"messages": [], "source": "base"}))
    assert parts == [{"token": "Hel"}, {"token": "lo\x1b"}, {"text": "Hello\x1b", "tokens": 2}]
    assert server.requests[0]["args"] == {"messages": [], "source": "base"}


@cases("by", ["iterator", "client"])
def test_closing_cancels_a_generation(live: Run, serve: Serve, by: str) -> None:
    def handler(connection: socket.socket, request: dict[str, Any]) -> None:
        say(connection, id=request["id"], token="a")
        say_nothing(connection, request)

    server = serve(handler)
    client = ControlClient(live)
    stream = client.generate({})
    assert next(stream) == {"token": "a"}
    if by == "iterator":
        stream.close()
    else:
        client.close()
        assert "was closed" in message_of(lambda: next(stream))
        assert "was closed" in message_of(lambda: client.request("ping"))
    assert server.ended.wait(60)


def test_closing_from_another_thread_ends_a_waiting_call(live: Run, serve: Serve) -> None:
    server = serve(say_nothing)
    outcomes: list[str] = []
    client = ControlClient(live)
    thread = threading.Thread(target=lambda: outcomes.append(message_of(lambda: client.request("checkpoint"))))
    thread.start()
    wait_for(lambda: server.requests)
    client.close()
    thread.join(20)
    assert "was closed" in outcomes[0]


@cases("pause", [0.02, 0.0, None])
def test_neither_silence_nor_other_messages_extend_the_timeout(live: Run, serve: Serve, pause: float | None) -> None:
    def drip(connection: socket.socket, _: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            while pause is not None:
                say(connection, id="another", token="x")
                select.select([connection], [], [], pause)  # until the client has gone
            say_nothing(connection, _)

    serve(drip)
    with ControlClient(live, timeout=0.3) as client:
        assert "did not answer pause within 0.3 s" in message_of(lambda: client.request("pause"))


@cases("value", [b"9" * 400, b"1e999", b"NaN", b"[" * 40 + b"]" * 40])
@cases("garbage", [b"not json\n", b"[1]\n", b"\xff\xfe\n", b"x" * 70_000, b'{"id": "%s", "ok": true, "step": %s}\n'])
def test_garbage_is_named(
    live: Run, serve: Serve, garbage: bytes, value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LINE_LIMIT", 65_536)

    def handler(connection: socket.socket, request: dict[str, Any]) -> None:
        connection.sendall(garbage % (request["id"].encode(), value) if b"%s" in garbage else garbage)

    serve(handler)
    assert "does not speak its protocol" in message_of(lambda: ControlClient(live).request("ping"))
    serve(lambda connection, _: connection.sendall(b'{"id": "x", "ok"'))
    assert "ended the connection before it answered stop" in message_of(lambda: ControlClient(live).request("stop"))


def test_sockets_of_others_refused(live: Run, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda connection, request: say(connection, id=request["id"], ok=True))
    monkeypatch.setattr(protocol, "peer_uid", lambda _: os.getuid() + 1)
    assert f"uid {os.getuid() + 1}" in message_of(lambda: ControlClient(live).request("ping"))
    assert server.requests == []


@cases(
    ("state", "words"),
    [
        ("finished", "is finished; only a live run takes commands"),
        ("stopped", "start it again"),
        ("queued", "still starting"),
        ("training", "cannot be reached"),
    ],
)
def test_no_socket_is_reported_by_what_the_run_is(live: Run, state: str, words: str) -> None:
    change_state(live, state=state)
    assert words in message_of(lambda: ControlClient(live).request("ping"))


def test_the_state_file_says_where_the_socket_is(live: Run, serve: Serve) -> None:
    serve(lambda connection, request: say(connection, id=request["id"], ok=True, where="moved"))
    moved = live.path / "elsewhere.sock"
    live.socket_path.rename(moved)
    change_state(live, socket=str(moved))
    assert ControlClient(live).request("ping") == {"where": "moved"}


@cases("command", ["pause", "generate"])
@cases(
    "line",
    [
        b'{"id": "another", "token": "x"}\n' * 2000,
        b'{"id": null, "note": "neither token nor answer"}\n' * 2000,
        b"x" * 100_000,
    ],
)
def test_a_peer_that_never_comes_to_an_answer_is_left(
    live: Run, serve: Serve, monkeypatch: pytest.MonkeyPatch, command: str, line: bytes
) -> None:
    monkeypatch.setattr(client_module, "EXCHANGE_LIMIT", 1 << 20)

    def flood(connection: socket.socket, _: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(line)

    serve(flood)
    client = ControlClient(live)
    ask = (lambda: list(client.generate({}))) if command == "generate" else (lambda: client.request(command))
    assert "does not speak its protocol" in message_of(ask)


@cases("path", ["\ud800/x", "/" + "x" * 300, "relative", None])
def test_a_socket_that_no_path_leads_to_cannot_be_reached(live: Run, path: str | None) -> None:
    if path is None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(live.socket_path))  # nobody listens
    change_state(live, socket=path)
    assert "control socket cannot be reached" in message_of(lambda: ControlClient(live).request("pause"))
