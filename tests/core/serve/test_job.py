"""The server of the app: a helper that reports, and ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx2
import pytest

from core.jobs.job import JobCancelledError
from core.serve.job import serve_job
from core.serve.options import KEY_VARIABLE, ServerAddress
from tests.core.chat.test_session import add_adapter, make_run
from tests.waiting import wait_for

Addresses = list[ServerAddress]


@contextlib.contextmanager
def started(target: str, port: int = 0) -> Iterator[tuple[Future[object], Addresses]]:
    """A job in a thread, closed at the end, and the addresses that it has told."""
    addresses: Addresses = []
    job = serve_job(target, addresses.append, port)
    with ThreadPoolExecutor() as pool, contextlib.closing(job):
        yield pool.submit(job.run), addresses


def get(address: ServerAddress, path: str = "/models") -> httpx2.Response:
    return httpx2.get(address.url + path, headers={"Authorization": f"Bearer {address.key}"})


def test_it_serves_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("finished")
    add_adapter(run.adapter_path)
    monkeypatch.setenv(KEY_VARIABLE, "the-same-key-each-time")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with started(str(run.path), number) as (running, addresses):
            wait_for(lambda: addresses or running.done(), 30, "the server to come up")
            (address,) = addresses
            assert not address.url.endswith(f":{number}/v1"), "that port is another program's"
            assert (address.models, address.key) == ((run.id, "base"), "the-same-key-each-time")
            assert get(address).status_code == 200
    with pytest.raises(JobCancelledError):
        running.result(10)
    with pytest.raises(httpx2.ConnectError):
        get(address)
