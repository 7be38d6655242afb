"""Fixture: a separate home for every test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.runs.record.store import Run, create_run
from tests.core.runs.helpers import config_for


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of localtune, empty, its path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="lt-") as directory:
        monkeypatch.setenv("LOCALTUNE_HOME", directory)
        yield Path(directory)


@pytest.fixture
def run(home: Path) -> Run:
    """A queued run."""
    return create_run(config_for(home), "tickets")
