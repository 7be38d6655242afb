"""Serving a model in training, and with the network cut: nothing but loopback, or a Unix socket, is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.launch.launcher import worker_environment
from core.runs.record.store import Run
from tests.core.serve.conftest import RunningServer, end, start
from tests.forking import Forks
from tests.waiting import wait_for

from .test_offline import RECORDER, recording
from .test_offline import network_cut as network_cut
from .workers import PATIENCE, Workers, wait_until_step

#: Recorder of every address that is bound or connected to.
ADDRESSES = """
def addresses(event, args):
    if event in ("socket.bind", "socket.connect") and isinstance(args[1], tuple):
        record(f"{event} {args[1][0]}")

if os.environ.get("SOCKET_RECORD"):
    sys.addaudithook(addresses)
"""
QUESTION = [{"role": "user", "content": "ticket login"}]


@contextmanager
def serving(
    forks: Forks,
    workers: Workers,
    *words: str,
    prefix: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """A server on runs of these workers, by the command that users have."""
    environment = worker_environment() | {
        "LOCALTUNE_HOME": str(workers.home),
        "OMP_NUM_THREADS": "1",
        **(variables or {}),
    }
    server = start(["-m", "tui", "serve", *words, "--json"], *prefix, popen=forks.popen, **environment)
    try:
        yield server
    finally:
        end(server)


def test_a_model_in_training_answers_between_steps_and_as_the_result_after(forks: Forks, workers: Workers) -> None:
    run = workers.start(train={"max_steps": 2000}, eval={"every_steps": 2000}, checkpoint={"every_steps": 2000})
    wait_until_step(run, 2)
    with serving(forks, workers, run.id, "--port", "0") as server:

        def ask(model: str) -> Any:
            return server.client().chat.completions.create(model=model, messages=QUESTION, max_tokens=4)

        first = ask(run.id)
        assert first.system_fingerprint.startswith("step-")
        assert first.usage.prompt_tokens > 0
        later = ask(run.id)
        assert int(later.system_fingerprint[5:]) >= int(first.system_fingerprint[5:])
        assert ask(workers.model.name).system_fingerprint == "base"
        streamed = list(
            server.client().chat.completions.create(model=run.id, messages=QUESTION, max_tokens=4, stream=True)
        )
        assert streamed[-1].choices[0].finish_reason in ("stop", "length")
        with workers.environment():
            from core.runs.control.client import ControlClient

            ControlClient(run).request("stop")
        wait_for(lambda: run.state().is_over, PATIENCE, "the run to stop")
        assert ask(run.id).system_fingerprint.startswith("step-"), "its last checkpoint answers"


def test_nothing_but_loopback_is_opened(forks: Forks, workers: Workers, reference: Run, tmp_path: Path) -> None:
    variables, record = recording(tmp_path, RECORDER + ADDRESSES)
    variables["LOCALTUNE_HOME"] = str(reference.path.parents[1])
    with serving(forks, workers, reference.id, "--port", "0", variables=variables) as server:
        answer = server.client().chat.completions.create(model=reference.id, messages=QUESTION, max_tokens=4)
        assert answer.system_fingerprint == "adapter"
    lines = set(record.read_text().splitlines())
    assert {line for line in lines if line.startswith(("lookup", "socket.connect"))} == {"lookup 127.0.0.1"}
    assert {line for line in lines if line.startswith("socket.bind")} == {"socket.bind 127.0.0.1"}


@pytest.mark.long
def test_serving_works_with_the_network_cut(
    forks: Forks, workers: Workers, reference: Run, tmp_path: Path, network_cut: list[str]
) -> None:
    socket = tmp_path / "serve.sock"
    home = str(reference.path.parents[1])
    with serving(
        forks, workers, reference.id, "--uds", str(socket), prefix=network_cut, variables={"LOCALTUNE_HOME": home}
    ) as server:
        transport = httpx2.HTTPTransport(uds=str(socket))
        headers = {"Authorization": f"Bearer {server.key}"}
        with httpx2.Client(transport=transport, headers=headers, timeout=PATIENCE) as client:
            body = {"model": reference.id, "messages": QUESTION, "max_tokens": 4}
            found = client.post(f"{server.url}/chat/completions", json=body)
    assert (found.status_code, found.json()["usage"]["completion_tokens"] > 0) == (200, True)
