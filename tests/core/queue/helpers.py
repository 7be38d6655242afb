"""Entries, and workers without processes, controlled by the test."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.launch import launcher
from core.queue import store
from core.queue.entry import QueueEntry
from core.queue.runner import QueueRunner
from core.runs.record.state import RunState
from core.runs.record.store import Run, try_lock
from tests.core.runs.helpers import live_state, there


def config_for(**sections: dict[str, Any]) -> Config:
    """A configuration that can be checked without files."""
    values: dict[str, dict[str, Any]] = {
        "model": {"base": "/models/base"},
        "data": {"train": "/data/rows.jsonl"},
        "hardware": {"device": "cpu"},
    }
    return Config.model_validate(values | sections)


def add(*names: str, **sections: dict[str, Any]) -> list[QueueEntry]:
    """Add entries to the queue of the home."""
    config = config_for(**sections)
    return store.add([(QueueEntry(id=1, name=name, added=1.0), config) for name in names])


def states() -> dict[int, str]:
    """State of every entry by its id."""
    return {entry.id: entry.state for entry in store.read_queue().entries}


def fill(path: Path) -> None:
    """Write a file until its disk is full."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


class FakeWorkers:
    """Stands in for the launcher: a launched run is live until the test ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launched: list[tuple[str, bool]] = []
        """Run ids in the order of their starts, with whether they went on from a checkpoint."""
        self._locks: dict[str, int] = {}
        monkeypatch.setattr(launcher, "launch", self.launch)
        monkeypatch.setattr(launcher, "continue_run", lambda run, **_: self.launch(run, resume=True))

    def launch(self, run: Run, *, resume: bool = False, alone: bool = True) -> int:
        """Start a run, with its pid written at once."""
        self.spawn(run, resume=resume)
        self.begin(run)
        return os.getpid()

    def spawn(self, run: Run, *, resume: bool = False) -> None:
        """A process that holds the lock, and has written nothing yet."""
        lock = try_lock(run)
        assert lock is not None, f"{run.id} has two workers"
        self._locks[run.id] = lock
        self.launched.append((run.id, resume))

    def begin(self, run: Run) -> None:
        """The process has written its pid: that of the tests."""
        live_state(beat=time.monotonic()).write(run.state_path)

    def end(self, run: Run, state: str = "finished", **changes: Any) -> None:
        """The process writes its end, and is gone."""
        recorded = there(RunState.read(run.state_path))
        gone = replace(recorded, state=state, pid=2, pid_started="gone/1", updated=time.time(), **changes)
        gone.write(run.state_path)
        self.unlock(run)

    def vanish(self, run: Run, boot: str | None = None) -> None:
        """The process is gone without a word; in another boot of the machine where one is named."""
        recorded = there(RunState.read(run.state_path))
        identity = recorded.pid_started or "x/1"
        started = f"{boot or identity.partition('/')[0]}/1"
        replace(recorded, pid=2, pid_started=started).write(run.state_path)
        self.unlock(run)

    def unlock(self, run: Run) -> None:
        """The lock is free, as after the end of a process."""
        if (lock := self._locks.pop(run.id, None)) is not None:
            with contextlib.suppress(OSError):
                os.close(lock)


def make_runner(**options: Any) -> QueueRunner:
    """A runner in this process that finds room always."""
    return QueueRunner(**{"told": lambda _: None, "room": lambda _: None, **options})
