"""Fixtures of the app's tests: a private home, and devices that do not change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.hardware.snapshot import Device
from core.launch.launcher import terminate
from core.runs.store import list_runs

CPU = Device(
    index=0,
    kind="cpu",
    name="CPU",
    utilization=3.0,
    memory_used=4_000_000_000,
    memory_total=32_000_000_000,
)


@pytest.fixture
def home(private_home: Path) -> Iterator[Path]:
    """The home of localtune, empty; a run that a key has started in it is ended after the test."""
    private_home.mkdir(parents=True, exist_ok=True)
    yield private_home
    for run in list_runs():
        # A scripted run names the process of the tests as its worker.
        if not run.state().is_over and run.state().pid != os.getpid():
            terminate(run, force=True)


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle CPU, and an environment without variables that change the app's look."""
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [CPU])
    for name in ("NO_COLOR", "TEXTUAL_THEME", "TEXTUAL_ANIMATIONS", "TEXTUAL_COLOR_SYSTEM"):
        monkeypatch.delenv(name, raising=False)
