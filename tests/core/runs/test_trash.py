"""The trash: a run goes in whole, comes back whole, and is gone only when that was asked for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from core.runs.catalog.removal import (
    find_trashed,
    free_bytes,
    list_trash,
    remove_trashed,
    restore_run,
    sweep_trash,
    trash_run,
)
from core.runs.record.state import RunState, own_identity
from core.runs.record.store import Run, create_run, list_runs
from tests.core.runs.helpers import config_for


@pytest.fixture
def ended(run: Run) -> Run:
    RunState(state="finished", step=3, total_steps=3).write(run.state_path)
    return run


def test_a_run_goes_to_the_trash_and_comes_back(ended: Run) -> None:
    files = {path.name: path.read_bytes() for path in ended.path.iterdir()}
    item = trash_run(ended)
    assert list_runs() == []
    assert list_trash() == [item]
    assert (item.id, find_trashed("tickets"), item.size > 0, item.deleted > 0) == (ended.id, item, True, True)
    assert paths.trash_dir().stat().st_mode & 0o777 == 0o700
    assert restore_run(item) == ended
    assert list_trash() == []
    assert {path.name: path.read_bytes() for path in ended.path.iterdir() if path.name in files} == files
    assert list(paths.trash_dir().iterdir()) == []


def test_one_id_twice_in_the_trash_is_two_runs(ended: Run, home: Path) -> None:
    first = trash_run(ended)
    again = create_run(config_for(home), "tickets")
    RunState(state="failed").write(again.state_path)
    again.path.rename(ended.path)
    second = trash_run(ended)
    assert {item.path for item in list_trash()} == {first.path, second.path}
    assert restore_run(find_trashed(ended.id)).state().state == "failed"
    with pytest.raises(UserError, match="There is a run"):
        restore_run(first)
    assert list_trash() == [first]


def test_the_trash_is_emptied_for_good(ended: Run) -> None:
    outside = ended.path.parent.parent / "precious"
    outside.mkdir()
    (outside / "file").write_text("stays")
    (ended.path / "link").symlink_to(outside)
    remove_trashed(trash_run(ended))
    assert list_trash() == []
    assert (outside / "file").read_text() == "stays"
    # What an interrupted deletion has left is neither listed nor kept.
    left = paths.trash_dir() / ".deleted-20260101-000000"
    (left / "half").mkdir(parents=True)
    assert list_trash() == []
    sweep_trash()
    assert not left.exists()


def test_a_live_run_is_not_moved(run: Run) -> None:
    pid, started = own_identity()
    RunState(state="training", pid=pid, pid_started=started).write(run.state_path)
    with pytest.raises(UserError, match="Stop it first"):
        trash_run(run)
    assert list_runs() == [run]
    assert list(paths.trash_dir().iterdir()) == []


def test_another_disk_is_said(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_source: object, _target: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match="rm --now"):
        trash_run(ended)
    assert list_runs() == [ended]


@pytest.mark.parametrize("name", ["nothing", ""])
def test_an_unknown_name(ended: Run, name: str) -> None:
    trash_run(ended)
    with pytest.raises(UserError, match="There is no run called"):
        find_trashed(name)


def test_free_bytes_are_told_before_there_is_a_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(home / "not" / "yet"))
    assert (free_bytes() or 0) > 0
