"""Positions of trackers as a run directory has them, and that may be anybody's."""

from __future__ import annotations

import json
import os
from pathlib import Path

from core.runs.record.store import Run
from core.tracking.position import Position, TrackerFiles
from tests.cases import cases

SOUND = Position(offset=10, rows=2, step=1, memory={"size": 3}, state="sending", pid=5, pid_started="x")


def written(directory: Path) -> Path:
    """The file of a sound position."""
    place = TrackerFiles(Run(directory), "wandb")
    place.make()
    SOUND.write(place)
    return place.position_path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert Position.read(written(tmp_path)) == SOUND


@cases(
    "change",
    [{"offset": 10**400}, {"rows": True}, {"step": -1}, {"rows": 2**63}, {"memory": []}, {"pid": "../../x"},
     {"pid": [1]}, {"pid_started": 5}, {"state": []}, {"reason": 5}],
)  # fmt: skip
def test_a_position_that_makes_no_sense_is_the_beginning(tmp_path: Path, change: dict[str, object]) -> None:
    path = written(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert Position.read(path) == Position()


def test_whatever_lies_under_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "deep").write_text("[" * 100_000)
    for name in ("fifo", "directory", "device", "deep", "none"):
        assert Position.read(tmp_path / name) == Position()
