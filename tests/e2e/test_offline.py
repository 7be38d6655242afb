"""Nothing leaves the machine: no socket but Unix ones, no thread that reports, and all of it works without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.config.document import dump_config
from core.runs.launcher import worker_environment

from .workers import Workers

#: Loaded by every interpreter that is started: writes down each socket and each thread that is made.
RECORDER = """
import os, sys
def hook(event, args, out=os.environ.get("SOCKET_RECORD")):
    if event == "socket.__new__":
        line = f"socket {int(args[1])}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        line = f"lookup {args[0]}"
    elif event in ("_thread.start_new_thread", "_thread.start_joinable_thread"):
        owner = getattr(args[0], "__self__", None)
        target = getattr(owner, "_target", None) or type(owner).run if owner is not None else args[0]
        line = f"thread {getattr(target, '__module__', None)}.{getattr(target, '__qualname__', target)}"
    else:
        return
    descriptor = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, (line + chr(10)).encode())
    os.close(descriptor)
if os.environ.get("SOCKET_RECORD"):
    sys.addaudithook(hook)
"""
_TINY = {
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
    foreign = {name for name in threads if not name.startswith(("core.", "concurrent.futures.thread.", "subprocess."))}
    assert foreign == set()
