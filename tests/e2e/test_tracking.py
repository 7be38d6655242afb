"""A tracker that hangs, fails or ends its process leaves the training as it is."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from core.launch import launcher
from core.runs.record.events import FinishedEvent, StepEvent
from core.runs.record.store import Run
from core.tracking.position import TrackerFiles
from tests.waiting import wait_for

from .workers import PATIENCE, Workers, only

_SHORT: dict[str, Any] = {"max_steps": 6, "warmup": 0.0}
#: Clients whose server never answers, whose server refuses, and that end their process.
_LIBRARIES = {
    "wandb": "import threading\nthreading.Event().wait()\n",
    "tensorboard": "raise ConnectionError('no')\n",
    "trackio": "import os\nos._exit(3)\n",
}


def train(workers: Workers, name: str, directory: Path | None) -> Run:
    """A run of six steps, with three broken trackers if there is a directory of libraries."""
    tracking: dict[str, Any] = {"tools": list(_LIBRARIES)} if directory else {}
    path = os.pathsep.join(filter(None, [str(directory or ""), os.environ.get("PYTHONPATH", "")]))
    return workers.finished(name, {"PYTHONPATH": path}, train=_SHORT, eval={"every_steps": None}, tracking=tracking)


def has_failed(place: TrackerFiles) -> bool:
    """True if the failure of a tracker has been reported."""
    return place.position().state == "failed"


@pytest.mark.long
def test_broken_trackers_change_nothing_of_a_run(workers: Workers, tmp_path: Path) -> None:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name, text in _LIBRARIES.items():
        (libraries / f"{name}.py").write_text(text)
    first = len(launcher._trackers)
    plain, tracked = train(workers, "plain", None), train(workers, "tracked", libraries)
    try:
        assert only(FinishedEvent, tracked)
        told = [
            [(event.step, event.loss, event.grad_norm) for event in only(StepEvent, run)] for run in (plain, tracked)
        ]
        assert len(told[0]) == 6
        assert told[0] == told[1]
        places = {name: TrackerFiles(tracked, name) for name in ("wandb", "tensorboard", "trackio")}
        for name in ("tensorboard", "trackio"):
            wait_for(functools.partial(has_failed, places[name]), PATIENCE, f"{name} to fail")
        # The run is over, and the hanging client still hangs.
        assert places["wandb"].position().is_working
        assert all(place.position().rows == 0 for place in places.values())
        assert not (plain.path / "tracking").exists()
    finally:
        for process in launcher._trackers[first:]:
            process.kill()
            process.wait()


@pytest.mark.long
def test_a_run_is_tracked_while_it_trains(workers: Workers) -> None:
    pytest.importorskip("tensorboard", reason="not run: TensorBoard is not installed")
    run = workers.finished("tracked", None, train=_SHORT, eval={"every_steps": 3}, tracking={"tools": "tensorboard"})
    place = TrackerFiles(run, "tensorboard")
    wait_for(lambda: place.position().state in ("done", "failed"), PATIENCE, "the tracker to end")
    assert (place.position().state, place.position().step) == ("done", 6), place.log.read_text()
