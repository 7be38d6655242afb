"""Nothing leaves the machine: no socket but Unix ones, no thread that reports, and it all works without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from core.config.document import dump_config
from core.hub.job import fetch_job
from core.hub_uri import parse_entry
from core.launch.launcher import worker_environment
from core.runs.record.store import Run
from tests.core.hub.fake_hub import FakeHub, Repository
from tests.forking import Forks

from .workers import Workers, hooked

#: Loaded by every interpreter that is started: writes down each socket and each thread that is made.
RECORDER = """
import os, sys, threading

# Opened at once, as a confined process opens no other files.
if os.environ.get("SOCKET_RECORD"):
    descriptor = os.open(os.environ["SOCKET_RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def record(line):
    os.write(descriptor, (line + chr(10)).encode())

def hook(event, args):
    if event == "socket.__new__":
        record(f"socket {int(args[1])}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        record(f"lookup {args[0]}")

def start(thread, original=threading.Thread.start):
    work = thread._target or type(thread).run
    record(f"thread {work.__module__}.{work.__qualname__}")
    original(thread)

if os.environ.get("SOCKET_RECORD"):
    sys.addaudithook(hook)
    threading.Thread.start = start
"""
_TINY: dict[str, dict[str, Any]] = {
    "train": {"max_steps": 3, "warmup": 0.0},
    "eval": {"every_steps": 2},
}
_FAMILY_UNIX = 1


Command = Callable[..., dict[str, Any]]


def commands_of(forks: Forks, home: Path, prefix: list[str], **variables: str) -> Command:
    """A function that runs a command in a home, and returns its ``--json`` output."""
    environment = worker_environment() | {"LOCALTUNE_HOME": str(home), "OMP_NUM_THREADS": "1", **variables}

    def command(*words: str) -> dict[str, Any]:
        done = forks.run([*prefix, sys.executable, "-m", "tui", *words, "--json"], env=environment)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    return command


def train_and_chat(
    forks: Forks,
    workers: Workers,
    prefix: list[str],
    sections: dict[str, dict[str, Any]] | None = None,
    **variables: str,
) -> None:
    """Train a run and talk to its result."""
    command = commands_of(forks, workers.home, prefix, **variables)
    path = workers.directory / "offline.toml"
    path.write_text(dump_config(workers.config(**_TINY, **(sections or {}))))
    trained = command("train", str(path))
    assert (trained["state"], trained["step"]) == ("finished", 3)
    run = str(trained["run"])
    assert command("chat", run, "--prompt", "ticket login", "--max-new-tokens", "4")["source"] == "adapter"
    assert command("chat", run, "--base", "--prompt", "ticket login", "--max-new-tokens", "4")["source"] == "base"


def without_network() -> list[str]:
    """The beginning of a command that is run with the network cut; empty where the machine does not allow it."""
    unshare = shutil.which("unshare")
    can_cut = unshare and not subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode
    return [unshare, "-rn"] if unshare and can_cut else []


@pytest.fixture
def network_cut() -> list[str]:
    """The beginning of a command that is run with the network cut."""
    return without_network() or pytest.skip("not run: this machine does not allow network namespaces (unshare -rn)")


@pytest.mark.long
def test_training_and_chat_work_with_the_network_cut(forks: Forks, workers: Workers, network_cut: list[str]) -> None:
    train_and_chat(forks, workers, network_cut)


def recording(directory: Path, recorder: str = RECORDER) -> tuple[dict[str, str], Path]:
    """Variables by which every process writes down its sockets and threads, and the file that it writes to."""
    record = directory / "record"
    return hooked(directory / "hooks", recorder, SOCKET_RECORD=str(record)), record


def train_and_record(
    forks: Forks, workers: Workers, directory: Path, sections: dict[str, dict[str, Any]] | None = None
) -> set[str]:
    """The same, with the sockets and threads of all processes recorded."""
    variables, record = recording(directory)
    train_and_chat(forks, workers, [], sections, **variables)
    return set(record.read_text().splitlines())


def test_no_internet_socket_and_no_reporting_thread_is_made(forks: Forks, workers: Workers, tmp_path: Path) -> None:
    lines = train_and_record(forks, workers, tmp_path)
    # The recorder saw the worker at work: its control socket, its heartbeat.
    assert f"socket {_FAMILY_UNIX}" in lines
    assert "thread core.worker.process.recorder.Recorder._beat" in lines
    assert {line for line in lines if line.startswith(("socket", "lookup"))} == {f"socket {_FAMILY_UNIX}"}
    assert foreign_threads(lines) == set()


def foreign_threads(lines: set[str]) -> set[str]:
    """The threads of a record that are not ours."""
    threads = {line.removeprefix("thread ") for line in lines if line.startswith("thread")}
    # An engine is started as a module, so its threads belong to __main__.
    ours = ("core.", "__main__.ChatEngine.", "concurrent.futures.thread.", "subprocess.")
    return {name for name in threads if not name.startswith(ours)}


@pytest.mark.long
def test_a_result_is_taken_home_with_the_network_cut_and_no_internet_socket(
    forks: Forks, reference: Run, private_home: Path, converter: Path, tmp_path: Path
) -> None:
    """Export a GGUF file and a merged model, compare both with the trained model, and ask the file."""
    pytest.importorskip("llama_cpp_py_sync")
    assert converter.is_relative_to(private_home), "the converter was fetched before"
    shutil.copytree(reference.path, private_home / "runs" / reference.id, ignore=shutil.ignore_patterns("*.sock"))
    variables, record = recording(tmp_path)
    command = commands_of(forks, private_home, without_network(), **variables)
    for kind, quant in (("gguf", "Q8_0"), ("merged", "F32")):
        out = tmp_path / kind
        options = ("--quant", quant, "--merge-from", "quantized", "--rows", "1", "--out", str(out))
        made = command("export", reference.id, "--to", kind, *options)
        assert made["verified"], made
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    assert command("chat", str(file), "--prompt", "ticket login", "--max-new-tokens", "4")["source"] == file.name
    lines = set(record.read_text().splitlines())
    assert any(line.startswith("thread core.jobs.") for line in lines), "the processes were recorded"
    assert {line for line in lines if line.startswith(("socket", "lookup"))} <= {f"socket {_FAMILY_UNIX}"}
    assert foreign_threads(lines) == set()


@pytest.mark.long
def test_what_has_been_fetched_from_a_hub_is_used_without_asking_it(
    forks: Forks, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {path.name: path.read_bytes() for path in workers.model.iterdir() if path.is_file()}
    with closing(FakeHub()) as hub:
        hub.models["org/tiny"] = Repository(model)
        hub.datasets["me/set"] = Repository({"train.jsonl": workers.train_data.read_bytes()})
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("LOCALTUNE_HOME", str(workers.home))
        for entry in ("hf://org/tiny", "hf://datasets/me/set"):
            fetch_job(parse_entry(entry), lambda _: True).run()
        asked = len(hub.asked)
        sections: dict[str, dict[str, Any]] = {
            "model": {"base": "org/tiny"},
            "data": {"train": "hf://datasets/me/set", "eval": None},
        }
        lines = train_and_record(forks, workers, tmp_path, sections)
        assert len(hub.asked) == asked
    assert {line for line in lines if line.startswith(("socket", "lookup"))} == {f"socket {_FAMILY_UNIX}"}
