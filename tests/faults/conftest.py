"""Workers for the faults, and one undisturbed run that others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.runs.store import Run
from tests.e2e.conftest import workers as workers
from tests.e2e.workers import Workers, finish


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    """A run of the recipe that nothing disturbed, finished."""
    found = Workers(tmp_path_factory.mktemp("reference"), tiny_model_dir)
    try:
        run = found.start("reference", eval={"probe": True})
        finish(run)
    finally:
        found.close()
    return run
