"""Deletion of runs: all of a run, and nothing else."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from core.runs.catalog import removal
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run, list_runs, try_lock
from tests.cases import cases
from tests.core.runs.helpers import config_for, live_state, there


@pytest.fixture
def ended(run: Run) -> Run:
    RunState(state="failed", reason="no model").write(run.state_path)
    (run.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run.path / "checkpoints" / "step-00000001" / "weights").write_bytes(b"0" * 1000)
    return run


def test_links_are_deleted_and_not_followed(ended: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "dear.bin").write_bytes(b"0" * 5000)
    (ended.path / "linked").symlink_to(outside)
    (ended.path / "file").symlink_to(outside / "dear.bin")
    assert removal.directory_size(ended.path) < 4000
    before = removal.directory_size(ended.path)
    os.link(ended.path / "checkpoints" / "step-00000001" / "weights", ended.path / "again")
    assert removal.directory_size(ended.path) == before > 1000, "a file with two names counts once"
    removal.remove_run(ended)
    assert (outside / "dear.bin").stat().st_size == 5000
    assert not list(ended.path.parent.iterdir())
    assert list_runs() == []


@cases("state", ["training", "paused", "queued"])
def test_a_live_run_is_refused(ended: Run, state: str) -> None:
    live_state(state).write(ended.state_path)
    for action in (removal.remove_run, removal.trash_run):
        with pytest.raises(UserError, match="a live run is not deleted"):
            action(ended)
    assert list_runs() == [ended]


def test_a_run_with_a_worker_is_refused(ended: Run) -> None:
    lock = there(try_lock(ended))
    try:
        with pytest.raises(UserError, match="has a worker"):
            removal.remove_run(ended)
    finally:
        os.close(lock)
    removal.remove_run(ended)


def test_only_runs_of_this_home_are_deleted(ended: Run, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "run.toml").write_text("")
    with pytest.raises(UserError, match="is not among the runs"):
        removal.remove_run(Run(project))
    link = ended.path.parent / "20260101-000000-linked"
    link.symlink_to(project)
    with pytest.raises(UserError, match="is a link to"):
        removal.refuse_removal(Run(link))
    assert (project / "run.toml").exists()


def refuse(*_: object, number: int = errno.EACCES, **__: object) -> None:
    raise OSError(number, os.strerror(number))


def test_what_is_left_of_a_deletion_is_reported(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(UserError) as raised:
            removal.remove_run(ended)
    left = next(ended.path.parent.glob(".deleted-*"))
    assert "is deleted only in part" in str(raised.value)
    assert "Permission denied" in str(raised.value)
    assert str(left) in raised.value.hint
    # It is not a run any more.
    assert list_runs() == []


def test_an_interrupted_deletion_is_finished_by_a_later_one(ended: Run) -> None:
    old, new = (ended.path.parent / f"{removal._ASIDE}{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
        (left / "file").write_text("")
    os.utime(old, (1.0, 1.0))
    removal.remove_run(ended)
    assert not old.exists()
    assert new.exists()


def test_nothing_is_changed_where_the_runs_cannot_be_written(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(UserError, match="cannot be deleted: Permission denied"):
            removal.remove_run(ended)
        patch.setattr(os, "rename", partial(refuse, number=errno.EXDEV))
        with pytest.raises(UserError, match="rm --now"):
            removal.trash_run(ended)
    assert [run.id for run in list_runs()] == [ended.id]
    assert not [*ended.path.parent.glob(".deleted-*"), *paths.trash_dir().iterdir()]


@pytest.fixture
def finished(run: Run) -> Run:
    RunState(state="finished", step=3, total_steps=3).write(run.state_path)
    return run


def test_a_run_goes_to_the_trash_and_comes_back(finished: Run) -> None:
    files = {path.name: path.read_bytes() for path in finished.path.iterdir()}
    item = removal.trash_run(finished)
    assert list_runs() == []
    assert removal.list_trash() == [item]
    assert (item.id, removal.find_trashed("tickets")) == (finished.id, item)
    assert min(item.size, item.deleted) > 0
    assert paths.trash_dir().stat().st_mode & 0o777 == 0o700
    for name in ("nothing", ""):
        with pytest.raises(UserError, match="There is no run called"):
            removal.find_trashed(name)
    assert removal.restore_run(item) == finished
    assert removal.list_trash() == []
    assert {path.name: path.read_bytes() for path in finished.path.iterdir() if path.name in files} == files
    assert list(paths.trash_dir().iterdir()) == []


def test_one_id_twice_in_the_trash_is_two_runs(finished: Run, home: Path) -> None:
    first = removal.trash_run(finished)
    again = create_run(config_for(home), "tickets")
    RunState(state="failed").write(again.state_path)
    again.path.rename(finished.path)
    second = removal.trash_run(finished)
    assert {item.path for item in removal.list_trash()} == {first.path, second.path}
    assert removal.restore_run(removal.find_trashed(finished.id)).state().state == "failed"
    with pytest.raises(UserError, match="There is a run"):
        removal.restore_run(first)
    assert removal.list_trash() == [first]


def test_the_trash_is_emptied_for_good(finished: Run) -> None:
    outside = finished.path.parent.parent / "precious"
    outside.mkdir()
    (outside / "file").write_text("stays")
    (finished.path / "link").symlink_to(outside)
    removal.remove_trashed(removal.trash_run(finished))
    assert removal.list_trash() == []
    assert (outside / "file").read_text() == "stays"
    # The remains of an interrupted deletion are neither listed nor kept.
    left = paths.trash_dir() / ".deleted-20260101-000000"
    (left / "half").mkdir(parents=True)
    assert removal.list_trash() == []
    removal.sweep_trash()
    assert not left.exists()
