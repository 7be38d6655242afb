"""The event file, read back with TensorBoard's own reader."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from typing import Any

import pytest

from core.runs.record.events import StepEvent
from core.tracking.destinations import TensorBoard
from core.tracking.position import Position, TrackerFiles
from tests.core.tracking.conftest import Desk, steps

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="not run: TensorBoard is not installed (pip install 'localtune-tui[tensorboard]')",
)


def scalars(place: TrackerFiles) -> dict[str, list[tuple[int, float, float]]]:
    """Tag to (step, time, value), in the order of the file."""
    accumulator: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(place.data), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(item.step, item.wall_time, item.value) for item in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def test_its_own_reader_finds_every_figure_once(desk: Desk) -> None:
    desk.write(steps(1, 10))
    nan = next(event for event in steps(11, 11) if isinstance(event, StepEvent))
    desk.write([StepEvent(**{**vars(nan), "loss": math.nan})])
    desk.finish(11)
    place = TrackerFiles(desk.run, "tensorboard")
    code, out = desk.track(place)
    assert code == 0, out
    found = scalars(place)
    assert [item[0] for item in found["train/loss"]] == list(range(1, 12))
    assert found["train/loss"][3] == (4, 4.0, 0.5)
    assert math.isnan(found["train/loss"][10][2])
    assert [item[:2] for item in found["eval/loss"]] == [(5, 5.5), (10, 10.5)]
    assert found["memory/cuda-0/peak_bytes"][0] == (5, 5.5, float(1 << 30))
    assert found["hardware/cuda-0/temperature_c"][0][2] == 61.0

    desk.write(steps(12, 13))
    assert desk.track(place)[0] == 0
    assert [item[0] for item in scalars(place)["train/loss"]] == list(range(1, 14))
    assert len(list(place.data.iterdir())) == 1


def test_what_a_killed_process_left_behind_its_position_is_cut_off(desk: Desk) -> None:
    desk.write(steps(1, 3))
    desk.set_state("finished")
    place = TrackerFiles(desk.run, "tensorboard")
    assert desk.track(place)[0] == 0
    before = place.position_path.read_text()
    desk.write(steps(4, 6))
    assert desk.track(place)[0] == 0
    path = TensorBoard(place, "", "", {}).path
    with path.open("ab") as file:
        file.write(b"half of a rec")
    # As if the process had been killed after it had written, and before it had remembered it.
    place.position_path.write_text(json.dumps({**json.loads(before), "state": "sending"}))
    assert desk.track(place)[0] == 0
    assert [item[0] for item in scalars(place)["train/loss"]] == list(range(1, 7))
    assert Position.read(place.position_path).state == "done"


def test_a_file_that_was_removed_is_made_anew(desk: Desk) -> None:
    desk.write(steps(1, 3))
    desk.set_state("finished")
    place = TrackerFiles(desk.run, "tensorboard")
    assert desk.track(place)[0] == 0
    TensorBoard(place, "", "", {}).path.unlink()
    assert desk.track(place)[0] == 0
    assert [item[0] for item in scalars(place)["train/loss"]] == [1, 2, 3]
