"""Measurement within the process of a test, whose imports a process of its own would repeat."""

from __future__ import annotations

from typing import Any

import pytest

from core.models.architecture import measuring


class Silent:
    """Answers that nobody reads."""

    def progress(self, activity: str, done: int | None = None, total: int | None = None) -> None:
        """Nothing."""


def _run(job: dict[str, Any]) -> dict[str, Any]:
    # Tests that measure nothing do without torch.
    from core.worker.measure.__main__ import measure

    return measure(job, Silent())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process; what was measured is remembered from test to test."""
    monkeypatch.setattr(measuring, "_run", _run)
