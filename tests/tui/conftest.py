"""Fixtures of the app's tests: a private home, and devices that do not change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.cache import LRUCache
from textual.css.stylesheet import Stylesheet

from core.hardware.snapshot import Device
from core.launch.launcher import terminate
from core.runs.record.store import list_runs
from core.sandbox.pool import POOL
from tests.tui.resting import LOOK, look_often
from tests.tui.terminal import app_environment

CPU = Device(index=0, kind="cpu", name="CPU", utilization=3.0, memory_used=4_000_000_000, memory_total=32_000_000_000)


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """Style sheets are parsed once for each set of colors, and not anew for each app of a test."""
    known: dict[frozenset[tuple[str, str]], dict[Any, Any]] = {}
    set_variables = Stylesheet.set_variables

    def set_and_share(self: Stylesheet, variables: dict[str, str]) -> None:
        # It is cleared by the method.
        self._parse_cache = LRUCache(1)
        set_variables(self, variables)
        self._parse_cache = known.setdefault(frozenset(variables.items()), {})  # type: ignore[assignment]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stylesheet, "set_variables", set_and_share)
        yield


@pytest.fixture(scope="session", autouse=True)
def sandbox_kept() -> Iterator[None]:
    """All processes of the sandbox that an app has used at once are kept for the next app. It keeps one of them by
    itself, and each that is started imports libraries for half a second."""

    def keep_all(process: Any, keep: str) -> None:
        with POOL._lock:
            POOL._busy.discard(process)
            # Calls of one name run one at a time, so the name has no other process.
            if keep:
                POOL._kept[keep] = process
            else:
                POOL._spare.append(process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(POOL, "_give_back", keep_all)
        yield


@pytest.fixture(scope="session", autouse=True)
def short_looks() -> Iterator[None]:
    """Keys are waited for no longer than they take, and an app draws within one look instead of within 17 ms."""
    with pytest.MonkeyPatch.context() as patch:
        look_often(patch)
        patch.setattr("textual.screen.UPDATE_PERIOD", LOOK)
        yield


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


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    """Environment variables of an app in a terminal, with the test's directories."""
    return app_environment(home)
