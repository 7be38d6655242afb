"""Fixtures: a home for every test, fake workers, and the end of processes that a test has started."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.queue.status import read_status
from core.runs.record.state import RunState, is_same_process
from core.runs.record.store import list_runs
from tests.core.queue.helpers import FakeWorkers


@pytest.fixture
def home(private_home: Path) -> Path:
    """A home of its own, not made yet."""
    return private_home


@pytest.fixture
def fakes(home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorkers:
    """Workers that are only written down, in this process."""
    return FakeWorkers(monkeypatch)


@pytest.fixture
def processes(home: Path) -> Iterator[None]:
    """Runner and workers of the home end with the test."""
    yield
    pids = [(status.pid, status.pid_started)] if (status := read_status()) is not None else []
    for run in list_runs():
        if (state := RunState.read(run.state_path)) is not None and state.pid is not None:
            pids.append((state.pid, state.pid_started))
    for pid, identity in pids:
        if is_same_process(pid, identity):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
