"""Trackers of a run directory that comes from elsewhere: nothing outside of it is cut, written or deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import UserError
from core.runs.record.store import Run
from core.tracking.destinations import TensorBoard, Trackio, Wandb
from core.tracking.position import Position, TrackerFiles
from core.tracking.start import record_failure, start_tracker
from tests.cases import cases
from tests.core.tracking.conftest import Desk


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run directory, with nothing in it."""
    found = Run(tmp_path / "run")
    found.path.mkdir()
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the user's that looks like that of a tracker."""
    path = tmp_path / "outside"
    (path / "offline-run-1").mkdir(parents=True)
    (path / "offline-run-1" / "mine").write_text("keep")
    (path / "mine").write_text("keep this")
    return path


def content(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def tensorboard(run: Run) -> TensorBoard:
    return TensorBoard(TrackerFiles(run, "tensorboard"), "", "", {})


@cases("make", [lambda path, mine: path.symlink_to(mine), lambda path, mine: os.link(mine, path)])
@cases("size", [3, 0, None, 10**30])
def test_no_linked_file_is_cut(run: Run, outside: Path, make: Callable[[Path, Path], None], size: int | None) -> None:
    found = tensorboard(run)
    found.place.make()
    found.path.unlink(missing_ok=True)
    make(found.path, outside / "mine")
    with pytest.raises(UserError, match=r"localtune cannot be written: it is a (hard )?link"):
        found.restore({"size": size}, clean=False)
    assert (outside / "mine").read_text() == "keep this"


def test_an_event_file_is_cut_to_its_confirmed_size_or_begins_anew(run: Run) -> None:
    found = tensorboard(run)
    found.place.make()
    assert found.restore({"size": 3}, clean=False) is False
    found.path.write_bytes(b"12345")
    assert found.restore({"size": 3}, clean=False) is True
    assert found.path.read_bytes() == b"123"
    assert found.restore({"size": 4}, clean=False) is False
    assert found.path.read_bytes() == b""


def test_an_event_file_gets_its_header_once(run: Run, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event = SimpleNamespace(SerializeToString=lambda: b"header.")
    library = SimpleNamespace(
        RecordWriter=lambda file: SimpleNamespace(write=file.write),
        Event=lambda **_: event,
        hparams_pb=lambda *_, **__: None,
    )
    monkeypatch.setattr("core.tracking.destinations.importlib.import_module", lambda _: library)
    found = tensorboard(run)
    found.place.make()
    for _ in range(2):
        found.open()
        found.close()
    assert found.path.read_bytes() == b"header." * 2  # and the options
    assert found.path.stat().st_mode & 0o777 == 0o600
    found.path.unlink()
    found.path.symlink_to(outside / "mine")
    with pytest.raises(UserError, match="localtune cannot be written: it is a link"):
        found.open()
    assert (outside / "mine").read_text() == "keep this"


@cases("place", ["tracking", "tracking/wandb", "tracking/wandb/wandb"])
def test_directories_of_wandb_are_removed_only_beneath_the_run(tmp_path: Path, outside: Path, place: str) -> None:
    run = Run(tmp_path / "run")
    before = content(outside)
    (run.path / place).parent.mkdir(parents=True)
    (run.path / place).symlink_to(outside)
    with pytest.raises(OSError, match="it is a link"):
        Wandb(TrackerFiles(run, "wandb"), "", "", {}).restore({"directories": []}, clean=False)
    assert content(outside) == before


def test_a_linked_directory_of_wandb_is_removed_itself(run: Run, outside: Path) -> None:
    place = TrackerFiles(run, "wandb")
    (place.data / "wandb" / "offline-run-2").mkdir(parents=True)
    (place.data / "wandb" / "offline-run-3").mkdir()
    (place.data / "wandb" / "offline-run-9").symlink_to(outside)
    before = content(outside)
    assert Wandb(place, "", "", {}).restore({"directories": ["offline-run-2"]}, clean=False)
    assert [path.name for path in (place.data / "wandb").iterdir()] == ["offline-run-2"]
    assert content(outside) == before


def test_a_database_is_made_anew_only_beneath_the_run(run: Run, outside: Path) -> None:
    place = TrackerFiles(run, "trackio")
    place.root.mkdir()
    place.data.symlink_to(outside)
    before = content(outside)
    assert Trackio(place, "", "", {}).restore({}, clean=False) is False
    assert place.data.is_dir()
    assert not place.data.is_symlink()
    assert content(outside) == before


def test_nothing_is_started_or_recorded_through_a_link(run: Run, outside: Path) -> None:
    before = content(outside)
    (run.path / "tracking").symlink_to(outside)
    place = TrackerFiles(run, "tensorboard")
    with pytest.raises(UserError, match="tracking cannot be written: it is a link"):
        start_tracker(place, {})
    with pytest.raises(OSError, match="it is a link"):
        record_failure(place, "it failed")
    assert content(outside) == before
    assert sorted(path.name for path in outside.iterdir()) == ["mine", "offline-run-1"]


def test_its_process_says_which_file_it_does_not_write_to(desk: Desk, outside: Path) -> None:
    place = desk.recorded(2, "wandb")
    place.make()
    (place.data / "debug.log").symlink_to(outside / "mine")
    code, said = desk.track(place)
    assert code == 4, said
    found = Position.read(place.position_path)
    assert found.state == "failed"
    assert "debug.log is not written to: it is a link" in found.reason
    assert not desk.calls("init")
    assert (outside / "mine").read_text() == "keep this"


SOUND = Position(offset=10, rows=2, step=1, memory={"size": 3}, state="sending", pid=5, pid_started="x")


def written(directory: Path) -> Path:
    """The file of a sound position."""
    place = TrackerFiles(Run(directory), "wandb")
    place.make()
    SOUND.write(place)
    return place.position_path


@cases(
    "change",
    [{"offset": 10**400}, {"offset": -1}, {"rows": True}, {"rows": "x"}, {"step": -1}, {"rows": 2**63},
     {"memory": []}, {"pid": "../../x"},
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
    for name, text in (("deep", "[" * 100_000), ("empty", ""), ("list", "[]")):
        (tmp_path / name).write_text(text)
    for name in ("fifo", "directory", "device", "deep", "empty", "list", "none"):
        assert Position.read(tmp_path / name) == Position()
