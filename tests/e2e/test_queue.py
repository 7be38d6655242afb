"""The queue with real workers: runs in order, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.helper import finding_core
from core.queue import store
from core.queue.entry import QueueEntry
from core.queue.status import read_status, start_runner
from core.runs.record.store import Run, list_runs
from tests.e2e.workers import PATIENCE, Workers
from tests.waiting import wait_for

#: Stand-in for the app: it starts the runner and stays until it is killed.
APP = (
    "import time; from core.queue.status import start_runner; "
    "start_runner(60); print('on', flush=True); time.sleep(600)"
)


@pytest.fixture
def _home(workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    if (status := read_status()) is not None:
        os.kill(status.pid, signal.SIGKILL)


def states() -> list[str]:
    return [entry.state for entry in sorted(store.read_queue().entries, key=lambda entry: entry.id)]


@pytest.mark.usefixtures("_home")
def test_runs_come_in_order_after_kills_of_the_app_and_of_the_runner(workers: Workers, tmp_path: Path) -> None:
    out = tmp_path / "told"
    directory = tmp_path / "settings" / "localtune"
    directory.mkdir(parents=True)
    script = f'echo "$LOCALTUNE_STATE $LOCALTUNE_RUN" >> {out}'
    (directory / "notify.toml").write_text(f"command = {json.dumps(['/bin/sh', '-c', script])}\n")
    config = workers.config(train={"max_steps": 6}, eval={"every_steps": None}, checkpoint={"every_steps": None})
    workers.measure(config)
    indexed = config.with_options(checkpoint={"index": True})
    store.add([(QueueEntry(id=1, name=name), made) for name, made in (("one", config), ("two", indexed))])

    app = subprocess.Popen([sys.executable, "-c", APP], stdout=subprocess.PIPE, text=True, env=finding_core(os.environ))
    assert app.stdout is not None
    assert app.stdout.readline() == "on\n"
    wait_for(lambda: states()[0] == "running", PATIENCE, "the first run")
    app.kill()
    app.wait()
    status = read_status()
    assert status is not None, "the runner goes on without the app"
    os.kill(status.pid, signal.SIGKILL)
    wait_for(lambda: read_status() is None, PATIENCE, "the end of the runner")
    first = Run(Path(os.environ["LOCALTUNE_HOME"]) / "runs" / str(store.read_queue().entry(1).run))
    assert not first.state().is_over, "the run goes on without the runner"

    start_runner(60)
    wait_for(lambda: states() == ["done", "done"], PATIENCE, "the end of both")
    runs = sorted(list_runs(), key=lambda run: run.id)
    assert [run.id.rpartition("-")[2] for run in runs] == ["one", "two"]
    assert [run.state().state for run in runs] == ["finished"] * 2
    assert [run.log_path.read_text().count("== worker started") for run in runs] == [1, 1]
    assert [entry.trouble for entry in store.read_queue().entries] == ["", ""]
    assert [sorted(path.name for path in run.path.glob("trace/*")) for run in runs] == [
        [],
        ["step-00000003", "step-00000006"],
    ]
    ends = [entry.ended for entry in store.read_queue().entries]
    begins = [entry.begun for entry in store.read_queue().entries]
    assert all(begun and ended and begun >= ended for begun, ended in zip(begins[1:], ends[:-1], strict=True))
    wait_for(lambda: out.exists() and "queue_empty" in out.read_text(), PATIENCE, "the notice of the end")
    assert out.read_text().splitlines() == [*(f"finished {run.id}" for run in runs), "queue_empty "]
