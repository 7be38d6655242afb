"""Positions of trackers as a run directory has them, and that may be anybody's."""

from __future__ import annotations

import json
import os
from pathlib import Path

from core.tracking.position import Position
from tests.cases import cases

SOUND = Position(offset=10, rows=2, step=1, memory={"size": 3}, state="sending", pid=5, pid_started="x")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    SOUND.write(tmp_path / "p.json")
    assert Position.read(tmp_path / "p.json") == SOUND


@cases(
    "change",
    [{"offset": 10**400}, {"rows": True}, {"step": -1}, {"rows": 2**63}, {"memory": []}, {"pid": "../../x"},
     {"pid": [1]}, {"pid_started": 5}, {"state": []}, {"reason": 5}],
)  # fmt: skip
def test_a_position_that_makes_no_sense_is_the_beginning(tmp_path: Path, change: dict[str, object]) -> None:
    SOUND.write(tmp_path / "p.json")
    found = json.loads((tmp_path / "p.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps({**found, **change}))
    assert Position.read(tmp_path / "p.json") == Position()


def test_whatever_lies_under_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "deep").write_text("[" * 100_000)
    for name in ("fifo", "directory", "device", "deep", "none"):
        assert Position.read(tmp_path / name) == Position()
