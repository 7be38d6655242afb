"""Servers in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.forking import Forks

ROOT = Path(__file__).parents[3]


@dataclass
class RunningServer:
    """A server that listens."""

    process: subprocess.Popen[str]
    url: str
    key: str
    models: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.removesuffix("/v1").rpartition(":")[2])

    def client(self, key: str | None = None, timeout: float = 60.0) -> Any:
        """OpenAI's own client, which retries nothing; untyped, as its types forbid invalid requests."""
        return openai.OpenAI(base_url=self.url, api_key=key or self.key, max_retries=0, timeout=timeout)


def start(
    command: list[str], *prefix: str, popen: Callable[..., Any] = subprocess.Popen, **variables: str
) -> RunningServer:
    """Start a server by a module of Python, after another command if need be; wait until clients can connect."""
    process = popen(
        [*prefix, sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    if not line:
        process.wait(60)
        pytest.fail(process.stderr.read())
    told: dict[str, Any] = json.loads(line)
    return RunningServer(process, told["url"], told["key"], told.get("models", []))


def end(server: RunningServer) -> None:
    """Kill a server."""
    server.process.kill()
    server.process.wait()
    for stream in filter(None, (server.process.stdout, server.process.stderr)):
        stream.close()


def start_played(forks: Forks, **options: Any) -> RunningServer:
    """A server with played models."""
    command = ["-m", "tests.core.serve.fake_server", json.dumps({"port": 0, **options})]
    return start(command, popen=forks.popen)


@pytest.fixture
def serve(forks: Forks) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with played models."""
    servers: list[RunningServer] = []

    def make(**options: Any) -> RunningServer:
        servers.append(start_played(forks, **options))
        return servers[-1]

    yield make
    for server in servers:
        end(server)


@pytest.fixture(scope="session")
def played(forks: Forks) -> Iterator[RunningServer]:
    """A server with played models, for all tests that leave it as it was."""
    server = start_played(forks)
    yield server
    end(server)
