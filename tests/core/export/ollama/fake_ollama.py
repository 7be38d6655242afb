"""Ollama, made up for tests: a real server on this machine with its requests, and a program that speaks with it."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: The program: prints the real one's output, and creates the model through the server as the real one does.
_PROGRAM = f"""#!{sys.executable}
import json, os, sys, time, urllib.request
print("\\x1b[?25l\\x1b[2K\\x1b[1Ggathering model components \\u2819", file=sys.stderr, flush=True)
mode = open(os.path.join(os.path.dirname(__file__), "mode")).read()
if mode == "fail":
    sys.exit("\\x1b[2K\\x1b[1GError: \\x1b]0;evil\\x07no Modelfile or safetensors files found")
if mode == "silent":
    open(os.path.join(os.path.dirname(__file__), "pid"), "w").write(str(os.getpid()))
    time.sleep(600)
name, file = sys.argv[2], sys.argv[4]
body = {{"name": name, "modelfile": open(file).read(), "here": os.getcwd(), "variables": sorted(os.environ)}}
if mode != "forget":
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
    opener.open(os.environ["OLLAMA_HOST"] + "/fake/create", json.dumps(body).encode(), timeout=60).read()
print("\\x1b[1A\\x1b[2K\\x1b[1Gwriting manifest\\nsuccess", file=sys.stderr)
"""


@dataclass
class FakeOllama:
    """Models of the server, and its requests.

    Args:
        models: Content sent for each model.
        lines: The lines that a question is answered with; None waits until the client goes.
        status: The status of the answer.
        asked: The bodies of the questions.
    """

    models: dict[str, Any] = field(default_factory=dict)
    lines: list[bytes] | None = field(default_factory=list)
    status: int = 200
    asked: list[Any] = field(default_factory=list)
    waits: threading.Event = field(default_factory=threading.Event)
    """Set when a question waits for its answer."""
    ends: threading.Event = field(default_factory=threading.Event)
    """Ends the waiting."""
    port: int = 0

    def says(self, *pieces: str) -> None:
        """Answer questions with these pieces."""
        lines: list[dict[str, Any]] = [{"message": {"role": "assistant", "content": piece}} for piece in pieces]
        self.lines = [json.dumps(line).encode() + b"\n" for line in [*lines, {"done": True}]]


@contextmanager
def serving() -> Iterator[FakeOllama]:
    """The server, on a port of the loopback interface."""
    fake = FakeOllama()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/show":
                self._answer(200 if body["model"] in fake.models else 404, [b'{"error": "not found"}'])
            elif self.path == "/fake/create":
                fake.models[body["name"]] = body
                self._answer(200, [])
            else:
                fake.asked.append(body)
                if fake.lines is None:
                    fake.waits.set()
                    fake.ends.wait(60)
                self._answer(fake.status, fake.lines or [])

        def _answer(self, status: int, lines: list[bytes]) -> None:
            self.send_response(status)
            self.end_headers()
            # Who gives an answer up has gone.
            with contextlib.suppress(ConnectionError):
                for line in lines:
                    self.wfile.write(line)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.ends.set()
        server.shutdown()
        thread.join()
        server.server_close()


def install(directory: Path, mode: str = "") -> None:
    """Put the program into a directory.

    Args:
        directory: A directory on the PATH.
        mode: ``fail`` ends with an error, ``silent`` says nothing more, ``forget`` creates nothing.
    """
    (directory / "mode").write_text(mode)
    (directory / "ollama").write_text(_PROGRAM)
    (directory / "ollama").chmod(0o755)
