"""Real workers for the tests, and one uninterrupted run that others are compared with."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.runs.record.store import Run
from tests.forking import Forks

from .workers import Workers, finish


@pytest.fixture
def workers(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Workers]:
    """Workers with a home of their own, killed when the test is over."""
    found = Workers(tmp_path, tiny_model_dir)
    yield found
    found.close()


@pytest.fixture(scope="session")
def reference(shared: Path, tiny_model_dir: Path, forks: Forks) -> Run:
    """A run of the recipe that nothing disturbed, finished; its worker is started as the program does it.

    The processes of the tests share it: whoever needs it first trains it.
    """
    directory = shared / "reference"
    with (shared / "reference.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            (path,) = directory.glob("home/runs/*-reference")
            return Run(path)
        directory.mkdir()
        found = Workers(directory, tiny_model_dir)
        try:
            found.measure(found.config(eval={"probe": True}))
            forks.anew = True
            run = found.start("reference", eval={"probe": True})
            forks.anew = False
            finish(run)
        except BaseException:
            shutil.rmtree(directory)
            raise
        finally:
            found.close()
        return run
