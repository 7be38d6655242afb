"""Nothing leaves the machine: no socket but Unix ones, no thread that reports, and it all works without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.config.document import dump_config
from core.runs.launcher import worker_environment

from .workers import Workers

#: Loaded by every interpreter that is started: writes down each socket and each thread that is made.
RECORDER = """
import os, sys, threading

def record(line, path=os.environ.get("SOCKET_RECORD")):
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, (line + chr(10)).encode())
    os.close(descriptor)

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


def train_and_chat(workers: Workers, prefix: list[str], **variables: str) -> None:
    """Train a run and talk to its result, by the commands that users have."""
    environment = worker_environment() | {"LOCALTUNE_HOME": str(workers.home), "OMP_NUM_THREADS": "1", **variables}
    path = workers.directory / "offline.toml"
    path.write_text(dump_config(workers.config(**_TINY)))

    def command(*words: str) -> dict[str, object]:
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "tui", *words, "--json"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    trained = command("train", str(path))
    assert (trained["state"], trained["step"]) == ("finished", 3)
    run = str(trained["run"])
    assert command("chat", run, "--prompt", "ticket login", "--max-new-tokens", "4")["source"] == "adapter"
    assert command("chat", run, "--base", "--prompt", "ticket login", "--max-new-tokens", "4")["source"] == "base"


def test_training_and_chat_work_with_the_network_cut(workers: Workers) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("not run: this machine does not allow network namespaces (unshare -rn)")
    train_and_chat(workers, [unshare, "-rn"])


def test_no_internet_socket_and_no_reporting_thread_is_ever_made(workers: Workers, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(RECORDER)
    record = tmp_path / "record"
    python_path = os.pathsep.join(filter(None, [str(hooks), os.environ.get("PYTHONPATH", "")]))
    train_and_chat(workers, [], PYTHONPATH=python_path, SOCKET_RECORD=str(record))
    lines = set(record.read_text().splitlines())
    # The recorder saw the worker at work: its control socket, its heartbeat.
    assert f"socket {_FAMILY_UNIX}" in lines
    assert "thread core.worker.recorder.Recorder._beat" in lines
    assert {line for line in lines if line.startswith(("socket", "lookup"))} == {f"socket {_FAMILY_UNIX}"}
    threads = {line.removeprefix("thread ") for line in lines if line.startswith("thread")}
    # The chat engine is started as a module, so its own threads are those of __main__.
    ours = ("core.", "__main__.ChatEngine.", "concurrent.futures.thread.", "subprocess.")
    assert {name for name in threads if not name.startswith(ours)} == set()
