"""Trackers whose server refuses or never answers, and one that ends its process: the run does not notice."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.launch import launcher
from core.runs.record.store import Run
from core.tracking.position import TrackerFiles
from tests.e2e.workers import PATIENCE, Workers, adapter_bytes, finish
from tests.waiting import wait_for

pytestmark = pytest.mark.long

#: A library that sends something when it is loaded, as its client does at the beginning of a run.
LIBRARY = """
import urllib.request
urllib.request.urlopen("http://127.0.0.1:{port}/init", data=b"run", timeout=None)
"""


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.asked.set()  # type: ignore[attr-defined]
        self.send_error(500)

    def log_message(self, *args: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def refusing() -> Iterator[http.server.HTTPServer]:
    """A server that answers 500."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Refusing)
    server.asked = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_servers_of_trackers_that_refuse_or_hang_change_nothing_of_a_run(
    workers: Workers, tmp_path: Path, refusing: http.server.HTTPServer, silent: socket.socket
) -> None:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    ports = {"wandb": silent.getsockname()[1], "trackio": refusing.server_port}
    for name, port in ports.items():
        (libraries / f"{name}.py").write_text(LIBRARY.format(port=port))
    (libraries / "tensorboard.py").write_text("import os\nos._exit(3)\n")
    path = os.pathsep.join(filter(None, [str(libraries), os.environ.get("PYTHONPATH", "")]))
    first = len(launcher._trackers)
    runs: list[Run] = []
    try:
        for tools in ([], [*ports, "tensorboard"]):
            options: dict[str, Any] = {
                "train": {"max_steps": 8},
                "eval": {"every_steps": None},
                "tracking": {"tools": tools},
            }
            runs.append(workers.start("tracked", {"PYTHONPATH": path}, **options))
            finish(runs[-1])
        plain, tracked = runs
        assert adapter_bytes(tracked) == adapter_bytes(plain)
        assert refusing.asked.wait(PATIENCE)  # type: ignore[attr-defined]
        refused = TrackerFiles(tracked, "trackio")
        wait_for(lambda: refused.position().state == "failed", PATIENCE, "the refusal to be known")
        assert "500" in refused.log.read_text()
        ended = TrackerFiles(tracked, "tensorboard")
        wait_for(lambda: ended.position().state == "failed", PATIENCE, "the end of the process to be known")
        assert TrackerFiles(tracked, "wandb").position().is_working, "it still waits, and nobody for it"
        assert not (plain.path / "tracking").exists()
    finally:
        for process in launcher._trackers[first:]:
            process.kill()
            process.wait()
