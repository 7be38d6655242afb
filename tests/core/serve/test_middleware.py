"""Requests refused before anything reads them, on real sockets."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml

from core.errors import UserError
from core.serve.app import HEAD_BYTES
from core.serve.asgi import BODY_LIMIT
from core.serve.options import ServeOptions, open_listener
from tests.cases import cases
from tests.core.serve.conftest import RunningServer
from tests.core.serve.raw import connect, exchange, head, post, question
from tests.waiting import wait_for

HOSTS = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))


def message(body: bytes) -> str:
    return str(json.loads(body)["error"]["message"])


@cases("host", HOSTS["known"])
def test_names_of_this_machine_are_known(played: RunningServer, host: str) -> None:
    assert post(played, question("say x"), Host=host)[0] == 200


@cases("host", HOSTS["unknown"])
def test_other_names_are_refused(played: RunningServer, host: str) -> None:
    status, _, body = post(played, question("say x"), Host=host)
    assert (status, "--allow-host" in message(body)) == (421, True)
    assert exchange(played, head(played, "/health", "GET", Host=host))[0] == 421


def test_two_hosts_or_none_are_refused(played: RunningServer) -> None:
    body = question("say x")
    twice = head(played, Content_Length=str(len(body))).replace(b"\r\n", b"\r\nHost: evil.example\r\n", 1)
    assert exchange(played, twice + body)[0] in (400, 421)
    assert post(played, body, Host=None)[0] in (400, 421)


def test_a_name_that_the_user_allows_is_known(serve: Callable[..., RunningServer]) -> None:
    server = serve(names=["Box.local"])
    assert post(server, question("say x"), Host="box.LOCAL:1234")[0] == 200
    assert post(server, question("say x"), Host="other.local")[0] == 421


@cases("path", ["/v1/chat/completions", "/v1/models", "/v1/models/run-1", "/", "/docs"])
@cases("key", [None, "", "Bearer", "Bearer wrong", "Basic abc", "Bearer é", "Bearer {key} "])
def test_without_the_key_nothing_is_reported(played: RunningServer, path: str, key: str | None) -> None:
    given = None if key is None else key.replace("{key} ", played.key + "x")
    status, headers, body = exchange(played, head(played, path, "GET", Authorization=given))
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert played.key not in body.decode()
    assert "run-1" not in body.decode()


def test_health_needs_no_key(played: RunningServer) -> None:
    status, _, body = exchange(played, head(played, "/health", "GET", Authorization=None))
    assert (status, json.loads(body)) == (200, {"status": "ok"})


@cases("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_form_of_a_browser_is_refused(played: RunningServer, kind: str | None) -> None:
    status, _, body = post(played, question("say x"), Content_Type=kind)
    assert (status, "application/json" in message(body)) == (415, True)


def test_a_page_gets_no_permission(played: RunningServer) -> None:
    asked = {"Origin": "https://evil.example", "Access_Control_Request_Method": "POST"}
    for method in ("OPTIONS", "POST"):
        body = question("say x")
        _, headers, _ = exchange(played, head(played, method=method, Content_Length=str(len(body)), **asked) + body)
        assert not [name for name in headers if name.startswith("access-control")]
    assert exchange(played, head(played, method="OPTIONS", Authorization=None))[0] == 401


def test_a_page_of_an_allowed_origin_may_ask_with_the_key(serve: Callable[..., RunningServer]) -> None:
    page, allowed = "http://localhost:3000", "access-control-allow-origin"
    server = serve(origins=[page, "https://chat.example"])
    preflight: dict[str, Any] = {"Authorization": None, "Access_Control_Request_Method": "POST"}
    names = "authorization,content-type,x-stainless-os"
    asked = head(server, method="OPTIONS", Origin=page, Access_Control_Request_Headers=names, **preflight)
    status, headers, _ = exchange(server, asked)
    assert (status, headers[allowed], headers["access-control-allow-headers"]) == (200, page, names)
    assert (headers["access-control-allow-methods"], headers["connection"]) == ("GET, POST", "close")
    assert "access-control-allow-credentials" not in headers
    for changes, wanted in (({}, 200), ({"Authorization": None}, 401), ({"Host": "evil.example"}, 421)):
        status, headers, _ = post(server, question("say x"), **{"Origin": page, **changes})
        assert (status, headers[allowed], headers["vary"]) == (wanted, page, "Origin")
    for other in ("http://localhost:3001", "https://localhost:3000", "http://localhost:3000.evil.example", "null"):
        assert exchange(server, head(server, method="OPTIONS", Origin=other, **preflight))[0] == 400
        status, headers, _ = post(server, question("say x"), Origin=other)
        assert (status, allowed in headers) == (200, False)


@cases("origin", ["*", "null", "", "localhost:3000", "http://localhost:3000/", "http://Box:3000", "http://*.example"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(UserError, match="not an origin"):
        ServeOptions(("run",), origins=(origin,))


@cases(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b"[" * 200_000, 400),
        (b'{"model": ' + b"9" * 10_000 + b"}", 400),
        (b'{"model": "run-1", "messages": [' + b'{"role": "user", "content": "x"},' * 2 + b"NaN]}", 400),
        (b'{"a": "' + b"x" * BODY_LIMIT + b'"}', 413),
    ],
)
def test_bodies_that_are_no_request_are_refused(played: RunningServer, body: bytes, status: int) -> None:
    found, _, answer = post(played, body)
    assert (found, message(answer)[-1]) == (status, ".")


def test_a_body_without_an_end_is_refused_once_it_is_too_large(played: RunningServer) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with connect(played) as connection:
        connection.sendall(head(played, Transfer_Encoding="chunked"))
        for _ in range(BODY_LIMIT // 0x10000 + 1):
            connection.sendall(chunk)
        assert connection.recv(12) == b"HTTP/1.1 413"


@cases("sent", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", b"A" * 70_000, b"\x00\r\n\r\n"])
def test_what_is_no_http_ends_the_connection(played: RunningServer, sent: bytes) -> None:
    with connect(played) as connection:
        connection.sendall(sent + b"\r\n\r\n")
        with connection.makefile("rb") as file:
            assert file.readline().split()[1] == b"400"
    assert post(played, question("say x"))[0] == 200


@cases(
    "changes",
    [
        {"X_Long": "x" * HEAD_BYTES},
        {f"X_{number}": "x" * 100 for number in range(200)},
        {f"{'n' * 1000}{number}": "" for number in range(17)},
        {"Authorization": "Bearer " + "k" * 60_000},
        {"Host": "h" * 60_000},
    ],
)
@cases("path", ["/health", "/v1/models"])
def test_a_head_that_is_too_large_is_refused_in_one_piece_too(
    played: RunningServer, changes: dict[str, str], path: str
) -> None:
    status, headers, body = exchange(played, head(played, path, "GET", **changes))
    assert (status, headers["connection"]) == (431, "close")
    assert message(body) == "The head of the request is larger than 16 KiB."


def test_a_target_counts_as_a_part_of_the_head(played: RunningServer) -> None:
    with connect(played) as connection:
        connection.sendall(head(played, X_Long="x" * 100_000))
        # By the parser, or by the middleware where all of it came at once.
        assert connection.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert exchange(played, head(played, "/v1/models?" + "q" * HEAD_BYTES, "GET"))[0] == 431
    assert exchange(played, head(played, "/" + "p" * HEAD_BYTES, "GET"))[0] == 431
    assert exchange(played, head(played, "/v1/models?" + "q" * (HEAD_BYTES - 500), "GET"))[0] == 200


def test_other_paths_and_methods_are_reported(played: RunningServer) -> None:
    status, _, body = exchange(played, head(played, "/chat/completions", "GET"))
    assert (status, "ends in /v1" in message(body)) == (404, True)
    assert exchange(played, head(played, method="GET"))[0] == 405
    assert exchange(played, head(played, "/v1/models/", "GET"))[0] == 404


def test_only_loopback_is_listened_on(played: RunningServer) -> None:
    listening = [each for each in psutil.Process(played.process.pid).net_connections("inet") if each.status == "LISTEN"]
    assert [each.laddr.ip for each in listening] == ["127.0.0.1"]


def test_keys_are_random_and_long(played: RunningServer) -> None:
    keys = {played.key, *(ServeOptions(("x",)).key for _ in range(2))}
    assert len(keys) == 3
    assert min(map(len, keys)) >= 40
    for key in ("short", "with a space", "not-ascii-é"):
        with pytest.raises(UserError, match="The key must have"):
            ServeOptions(("x",), key=key)


def test_a_unix_socket_is_this_users_alone(serve: Callable[..., RunningServer], tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    server = serve(uds=str(path))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not psutil.Process(server.process.pid).net_connections("inet")
    with httpx2.Client(
        transport=httpx2.HTTPTransport(uds=str(path)), headers={"Authorization": f"Bearer {server.key}"}
    ) as client:
        assert [model["id"] for model in client.get(f"{server.url}/models").json()["data"]] == ["run-1", "tiny"]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert not path.exists()


def test_a_socket_that_was_left_is_replaced_and_nothing_else(
    serve: Callable[..., RunningServer], tmp_path: Path
) -> None:
    path = tmp_path / "serve.sock"
    server = serve(uds=str(path))
    with pytest.raises(UserError, match="cannot be made"):
        open_listener(ServeOptions(("x",), uds=path))
    server.process.kill()
    server.process.wait()
    wait_for(path.exists, 5, "the socket to be left")
    open_listener(ServeOptions(("x",), uds=path)).close()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(UserError, match="cannot be made"):
        open_listener(ServeOptions(("x",), uds=file))
    assert file.read_text() == "precious"
    with pytest.raises(UserError, match="more than 100 bytes"):
        open_listener(ServeOptions(("x",), uds=tmp_path / ("x" * 100)))


def test_an_address_that_cannot_be_had_is_a_sentence(played: RunningServer) -> None:
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1, port {played.port}"):
        open_listener(ServeOptions(("x",), port=played.port))
    with pytest.raises(UserError, match="is not an address of this machine"):
        open_listener(ServeOptions(("x",), host="no such host"))
