"""Real workers for the tests, and one uninterrupted run that others are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.runs.store import Run

from .forking import Forks
from .workers import Workers, finish


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What workers are forked from."""
    made = Forks()
    yield made
    made.close()


@pytest.fixture
def forked_workers(forks: Forks) -> Iterator[None]:
    """Workers that are started in this test are forked, which saves their imports."""
    with forks.replacing():
        yield


@pytest.fixture
def workers(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Workers]:
    """Workers with a home of their own, killed when the test is over."""
    found = Workers(tmp_path, tiny_model_dir)
    yield found
    found.close()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    """A run of the recipe that nothing disturbed, finished."""
    found = Workers(tmp_path_factory.mktemp("reference"), tiny_model_dir)
    try:
        run = found.start("reference")
        finish(run)
    finally:
        found.close()
    return run
