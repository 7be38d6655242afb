"""Measurements of models within the process of a test, whose imports a process of its own would repeat.

The tests of a run share them, whichever process they run in: each configuration is measured once. A run begins with
none, so that what a change of the sources does to them is never hidden.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from core.models.architecture import measuring
from core.paths import make_private_dir


def run_here(job: dict[str, Any]) -> dict[str, Any]:
    """Measure in this process."""
    # Tests that measure nothing do without torch.
    from core.jobs.process import Answers
    from core.worker.measure.job import measure

    # Nobody reads them.
    return measure(job, Answers(io.BytesIO()))


def share(home: Path, measurements: Path) -> None:
    """Let a home have the measurements of all tests, and theirs have its own.

    Args:
        home: That of a test or of its workers.
        measurements: The fixture.
    """
    (make_private_dir(home / "cache") / "measured").symlink_to(measurements)


@pytest.fixture(autouse=True)
def measured_here(private_home: Path, measurements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process what no test has measured."""
    share(private_home, measurements)
    monkeypatch.setattr(measuring, "_run", run_here)
