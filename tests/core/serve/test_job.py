"""The server of the app: a helper that reports, and ends."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import httpx2
import pytest

from core.errors import UserError
from core.jobs.job import JobCancelledError
from core.serve.job import serve_job
from core.serve.options import KEY_VARIABLE, ServerAddress
from tests.core.chat.test_session import add_adapter, make_run
from tests.waiting import wait_for


class Started:
    """A job in a thread."""

    def __init__(self, target: str, port: int = 0) -> None:
        self.addresses: list[ServerAddress] = []
        self.job = serve_job(target, self.addresses.append, port)
        self.errors: list[UserError] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.job.run()
        except JobCancelledError:
            return
        except UserError as error:
            self.errors.append(error)

    def address(self) -> ServerAddress:
        wait_for(lambda: self.addresses or self.errors, 30, "the server to come up")
        assert not self.errors, self.errors
        return self.addresses[0]

    def end(self) -> None:
        self.job.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


def get(address: ServerAddress, path: str = "/models") -> httpx2.Response:
    return httpx2.get(address.url + path, headers={"Authorization": f"Bearer {address.key}"})


def test_it_serves_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("finished")
    add_adapter(run.adapter_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv(KEY_VARIABLE, "the-same-key-each-time")
        started = Started(str(run.path), port=taken.getsockname()[1])
        address = started.address()
        assert not address.url.endswith(f":{taken.getsockname()[1]}/v1"), "that port is another program's"
    assert (address.models, address.key) == ((run.id, "base"), "the-same-key-each-time")
    assert get(address).status_code == 200
    started.end()
    assert started.errors == []
    with pytest.raises(httpx2.ConnectError):
        get(address)


def test_what_cannot_be_served_is_a_sentence(tmp_path: Path) -> None:
    started = Started(str(make_run("failed").path))
    started.thread.join(30)
    assert "has neither an adapter nor a whole checkpoint" in str(started.errors[0])
    started = Started("no-such-run")
    started.thread.join(30)
    assert "no-such-run" in str(started.errors[0])
