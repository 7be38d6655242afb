"""The real libraries, if they are installed: they take the metrics, and open no connection."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from core.config.choices import TRACKERS, Tracker
from core.runs.record.events import StepEvent
from core.tracking.destinations import TensorBoard
from core.tracking.position import Position, TrackerFiles
from tests.core.tracking.conftest import Desk, steps

#: Loaded by the interpreter of the tracker: writes down every socket that is made.
RECORDER = """
import os, sys

def hook(event, args):
    if event == "socket.__new__" or event.startswith(("socket.getaddrinfo", "socket.gethostbyname")):
        with open(os.environ["SOCKET_RECORD"], "a") as file:
            file.write(f"{event} {int(args[1]) if event == 'socket.__new__' else args[0]}\\n")

if "SOCKET_RECORD" in os.environ:
    sys.addaudithook(hook)
"""
_UNIX = "socket.__new__ 1"


def installed(tool: Tracker) -> None:
    """Skip where the library is not there."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"not run: {tool} is not installed (pip install 'localtune-tui[{tool}]')")


@pytest.mark.parametrize("tool", TRACKERS)
def test_a_run_is_taken_twice_without_a_connection(desk: Desk, tmp_path: Path, tool: Tracker) -> None:
    installed(tool)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "sitecustomize.py").write_text(RECORDER)
    record = tmp_path / "sockets"
    record.touch()
    place = desk.recorded(6, tool, is_fake=False)
    code, out = desk.track(place, SOCKET_RECORD=str(record))
    assert code == 0, out
    desk.write(steps(7, 7))
    code, out = desk.track(place, SOCKET_RECORD=str(record))
    assert code == 0, out
    assert (place.position().state, place.position().step, place.position().rows) == ("done", 7, 10)
    assert set(record.read_text().splitlines()) <= {_UNIX}
    assert any(os.scandir(place.data))


def test_trackio_has_every_step_once(desk: Desk) -> None:
    installed("trackio")
    place = desk.recorded(4, "trackio", is_fake=False)
    assert desk.track(place)[0] == 0
    desk.write(steps(5, 6))
    assert desk.track(place)[0] == 0
    with sqlite3.connect(place.data / "mine.db") as database:
        logged = database.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for step, text in logged if "train/loss" in str(text)] == [1, 2, 3, 4, 5, 6]


def scalars(place: TrackerFiles) -> dict[str, list[tuple[int, float, float]]]:
    """Tag to (step, time, value), in the order of the file."""
    accumulator: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(place.data), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(item.step, item.wall_time, item.value) for item in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def test_its_own_reader_finds_every_figure_once(desk: Desk) -> None:
    installed("tensorboard")
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


def test_its_hparams_tab_lists_the_options_once(desk: Desk) -> None:
    installed("tensorboard")
    place = desk.recorded(2, "tensorboard", is_fake=False)
    assert desk.track(place)[0] == 0
    desk.write(steps(3, 4))
    assert desk.track(place)[0] == 0
    (file,) = place.data.iterdir()
    loader: Any = importlib.import_module("tensorboard.backend.event_processing.event_file_loader")
    metadata: Any = importlib.import_module("tensorboard.plugins.hparams.metadata")
    values = [value for event in loader.EventFileLoader(str(file)).Load() for value in event.summary.value]
    (told,) = [value.metadata.plugin_data.content for value in values if value.tag == metadata.SESSION_START_INFO_TAG]
    session = metadata.parse_session_start_info_plugin_data(told)
    config = desk.run.config()
    assert session.group_name
    assert session.hparams["train.learning_rate"].number_value == config.train.learning_rate
    assert session.hparams["method.name"].string_value == config.method.name
    assert session.hparams["method.dora"].bool_value is config.method.dora
    assert not [name for name in session.hparams if name.startswith("data.")]


def test_what_a_killed_process_left_behind_its_position_is_cut_off(desk: Desk) -> None:
    installed("tensorboard")
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
