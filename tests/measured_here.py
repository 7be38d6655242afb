"""Measurements of models in the tests: shared by all processes of a run of them, each configuration measured once.

A run begins with none, so that a change of the sources never hides its effect on them.
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.memory import planner
from core.models.architecture import measuring

#: Environment variable with the directory of the measurements.
DIRECTORY = "LOCALTUNE_TEST_MEASURED"
#: Where they are outside of tests.
usual_directory = measuring._directory


def share_measurements() -> None:
    """Keep the measurements of this process where all tests do, if it is one of theirs."""
    if directory := os.environ.get(DIRECTORY):
        measuring._directory = lambda: Path(directory)


def run_here(job: dict[str, Any]) -> dict[str, Any]:
    """Measure in this process."""
    if threading.current_thread() is not threading.main_thread():
        # Whatever the main thread does with torch meanwhile would be measured too; it measures for itself.
        raise UserError("Only the main thread measures.")
    # Tests that measure nothing do without torch.
    from core.jobs.process import Answers
    from core.worker.measure.job import measure

    # Nobody reads them.
    return measure(job, Answers(io.BytesIO()))


@pytest.fixture(autouse=True)
def measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process, whose imports another one would repeat."""
    monkeypatch.setattr(measuring, "_run", run_here)


@pytest.fixture(autouse=True)
def bounded_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan by the rough bound in tests that are not slow, which does without torch."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(planner, "_measured", lambda *_arguments, **_options: None)
