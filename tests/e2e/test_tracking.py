"""A run with a tracker."""

from __future__ import annotations

import pytest

from core.tracking.position import TrackerFiles
from tests.waiting import wait_for

from .workers import PATIENCE, Workers


@pytest.mark.long
def test_a_run_is_tracked_while_it_trains(workers: Workers) -> None:
    pytest.importorskip("tensorboard", reason="not run: TensorBoard is not installed")
    run = workers.finished(
        "tracked", train={"max_steps": 6}, eval={"every_steps": 3}, tracking={"tools": "tensorboard"}
    )
    place = TrackerFiles(run, "tensorboard")
    wait_for(lambda: place.position().state in ("done", "failed"), PATIENCE, "the tracker to end")
    assert (place.position().state, place.position().step) == ("done", 6), place.log.read_text()
