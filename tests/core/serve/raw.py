"""Handwritten HTTP, for requests that no client would send."""

from __future__ import annotations

import json
import socket
from typing import Any

from tests.core.serve.conftest import RunningServer


def head(
    server: RunningServer, path: str = "/v1/chat/completions", method: str = "POST", **changes: str | None
) -> bytes:
    """The head of a request; a header that is None is left out, an underscore is a hyphen."""
    headers: dict[str, str | None] = {
        "Host": f"127.0.0.1:{server.port}",
        "Authorization": f"Bearer {server.key}",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("utf-8", "surrogateescape")


def question(content: str, **fields: Any) -> bytes:
    """The body of a question."""
    return json.dumps({"model": "run-1", "messages": [{"role": "user", "content": content}], **fields}).encode()


def connect(server: RunningServer, timeout: float = 30.0) -> socket.socket:
    """A connection to a server."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=timeout)


def exchange(server: RunningServer, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read the response to its end: status, headers, body."""
    with connect(server) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as file:
            status = int(file.readline().split()[1])
            headers = {}
            while (line := file.readline().strip()) != b"":
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            return status, headers, file.read(int(headers["content-length"])) if "content-length" in headers else b""


def post(server: RunningServer, body: bytes, **changes: Any) -> tuple[int, dict[str, str], bytes]:
    """Send a question."""
    return exchange(server, head(server, Content_Length=str(len(body)), **changes) + body)
