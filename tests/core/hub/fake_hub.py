"""Fake hub on this machine: a real HTTP server with the part of the Hugging Face Hub's API that the client uses."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

TOKEN = "hf_this_is_a_secret"


@dataclass
class Repository:
    """A repository of the hub.

    Args:
        files: Name to content.
        large: Names of the files that are kept elsewhere, on the second server.
        card: The data of its card.
        private: Whether it is hidden without a token.
        gated: Whether its files are refused without a token.
    """

    files: dict[str, bytes]
    large: set[str] = field(default_factory=set)
    card: dict[str, Any] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    revisions: tuple[str, ...] = ("main",)
    commit: str = ""
    claimed: dict[str, bytes] = field(default_factory=dict)
    """Contents whose hashes are announced instead of the real ones."""

    def __post_init__(self) -> None:
        self.commit = self.commit or _sha1(repr(sorted(self.files.items())).encode())

    def described(self, name: str) -> Any:
        """The API's answer about it."""
        found: list[dict[str, Any]] = []
        for name, content in {**self.files, **self.claimed}.items():
            blob = _sha1(f"blob {len(content)}\0".encode() + content)
            found.append({"rfilename": name, "size": len(content), "blobId": blob})
            if name in self.large:
                digest = hashlib.sha256(content).hexdigest()
                found[-1]["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
        return {"id": name, "sha": self.commit, "siblings": found, "cardData": self.card}


@dataclass
class Reply:
    """A false answer.

    Args:
        body: The bytes.
        status: Of HTTP.
        headers: Further headers; without a length among them the end of the connection is the end of the answer.
        times: How often the bytes are sent, one behind the other.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1


class Asked(NamedTuple):
    """A request as it came in."""

    server: str
    path: str
    headers: dict[str, str]


class FakeHub:
    """The hub and, on another port, the store that it keeps large files on."""

    def __init__(self) -> None:
        self.datasets: dict[str, Repository] = {}
        self.models: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        self.cuts: list[int] = []
        """The next answers with a file end after so many bytes, without a word."""
        self.stalls: dict[str, int] = {}
        """Answers with these files stop after so many bytes, and go on once ``resume`` is set."""
        self.stalled = threading.Event()
        self.resume = threading.Event()
        self.ignores_ranges = False
        self.about: Reply | None = None
        """The answer to every question about a repository, if set."""
        self.first: list[Reply] = []
        """The answers to the next questions for a file."""
        self._servers = [self._serve("hub"), self._serve("store")]

    @property
    def endpoint(self) -> str:
        """For ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def store(self) -> str:
        """Where large files are kept; another origin."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def close(self) -> None:
        """End both."""
        self.resume.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def paths(self) -> list[str]:
        """The paths of all requests so far, without their queries."""
        return [urlsplit(asked.path).path for asked in self.asked]

    def files_asked(self) -> list[str]:
        """Names of the files asked of the hub itself."""
        return [
            unquote(path.split("/resolve/", 1)[1].partition("/")[2]) for path in self.paths() if "/resolve/" in path
        ]

    def _serve(self, name: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nobody reads it."""

            def do_GET(self) -> None:
                hub.asked.append(Asked(name, self.path, {k.lower(): v for k, v in self.headers.items()}))
                try:
                    hub._answer(name, self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def _answer(self, server: str, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        if server == "store":
            kind, owner, name, file = path.removeprefix("/").split("/", 3)
            self._send_file(handler, unquote(file), getattr(self, kind)[f"{owner}/{name}"].files[unquote(file)])
            return
        parts = [unquote(part) for part in path.removeprefix("/").split("/")]
        is_api = parts[0] == "api"
        if is_api and self.about is not None:
            _send(handler, self.about)
            return
        if not is_api and self.first:
            _send(handler, self.first.pop(0))
            return
        kind = "datasets" if "datasets" in parts[: 1 + is_api] else "models"
        parts = parts[is_api:] if is_api else parts
        if parts[0] in ("datasets", "models"):
            parts = parts[1:]
        repository = getattr(self, kind).get("/".join(parts[:2]))
        allowed = handler.headers.get("authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            _send(handler, _error(404 if allowed else 401, "RepoNotFound"))
            return
        revision = parts[3] if len(parts) > 3 else "main"
        if revision not in (*repository.revisions, repository.commit):
            _send(handler, _error(404, "RevisionNotFound"))
            return
        if is_api:
            _send(handler, Reply(json.dumps(repository.described("/".join(parts[:2]))).encode()))
            return
        name = "/".join(parts[4:])
        if repository.gated and not allowed:
            _send(handler, _error(401, "GatedRepo"))
        elif name not in repository.files:
            _send(handler, _error(404, "EntryNotFound"))
        elif name in repository.large:
            place = f"{self.store}/{kind}/{'/'.join(parts[:2])}/{name}"
            _send(handler, Reply(status=302, headers={"Location": place}))
        else:
            self._send_file(handler, name, repository.files[name])

    def _send_file(self, handler: BaseHTTPRequestHandler, name: str, content: bytes) -> None:
        asked = handler.headers.get("range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not self.ignores_ranges else 0
        body = content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        if self.cuts:
            handler.wfile.write(body[: self.cuts.pop(0)])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.close()
            return
        if (stall := self.stalls.get(name)) is not None:
            handler.wfile.write(body[:stall])
            handler.wfile.flush()
            body = body[stall:]
            self.stalled.set()
            self.resume.wait(120)
        handler.wfile.write(body)


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Some tests kill the client."""


def _error(status: int, code: str) -> Reply:
    return Reply(b"{}", status, {"X-Error-Code": code})


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_response(reply.status)
    for name, value in reply.headers.items():
        handler.send_header(name, value)
    handler.send_header("Connection", "close")
    handler.end_headers()
    for _ in range(reply.times):
        handler.wfile.write(reply.body)
