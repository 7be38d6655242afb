"""Deletion of runs: all of a run, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from core.errors import UserError
from core.runs.catalog import removal
from core.runs.catalog.removal import directory_size, refuse_removal, remove_run
from core.runs.record.files import try_lock
from core.runs.record.state import RunState, own_identity
from core.runs.record.store import Run, create_run, list_runs
from tests.cases import cases
from tests.core.runs.helpers import config_for


@pytest.fixture
def ended(private_home: Path) -> Run:
    run = create_run(config_for(private_home), "tickets")
    RunState(state="failed", reason="no model").write(run.state_path)
    (run.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run.path / "checkpoints" / "step-00000001" / "weights").write_bytes(b"0" * 1000)
    return run


def test_a_run_is_gone_with_all_its_files(ended: Run) -> None:
    remove_run(ended)
    assert list(ended.path.parent.iterdir()) == []
    assert list_runs() == []


def test_links_are_deleted_and_not_followed(ended: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "dear.bin").write_bytes(b"0" * 5000)
    (ended.path / "linked").symlink_to(outside)
    (ended.path / "file").symlink_to(outside / "dear.bin")
    assert directory_size(ended.path) < 4000
    remove_run(ended)
    assert (outside / "dear.bin").stat().st_size == 5000


def test_a_file_with_two_names_counts_once(ended: Run) -> None:
    before = directory_size(ended.path)
    os.link(ended.path / "checkpoints" / "step-00000001" / "weights", ended.path / "again")
    assert directory_size(ended.path) == before
    assert before > 1000
    assert directory_size(ended.path / "none") == 0


@cases("state", ["training", "paused", "queued"])
def test_a_live_run_is_refused(ended: Run, state: str) -> None:
    pid, started = own_identity()
    RunState(state=state, pid=pid, pid_started=started, updated=time.time()).write(ended.state_path)
    with pytest.raises(UserError, match="a live run is not deleted"):
        remove_run(ended)
    assert ended.config_path.exists()


def test_a_run_with_a_worker_is_refused(ended: Run) -> None:
    lock = try_lock(ended)
    assert lock is not None
    try:
        with pytest.raises(UserError, match="has a worker"):
            remove_run(ended)
    finally:
        os.close(lock)
    remove_run(ended)


def test_only_runs_of_this_home_are_deleted(ended: Run, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "run.toml").write_text("")
    with pytest.raises(UserError, match="is not among the runs"):
        remove_run(Run(project))
    link = ended.path.parent / "20260101-000000-linked"
    link.symlink_to(project)
    with pytest.raises(UserError, match="is a link to"):
        refuse_removal(Run(link))
    assert (project / "run.toml").exists()


def test_what_is_left_of_a_deletion_is_told(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(UserError) as raised:
            remove_run(ended)
    left = next(ended.path.parent.glob(".deleted-*"))
    assert "is deleted only in part" in str(raised.value)
    assert "Permission denied" in str(raised.value)
    assert str(left) in raised.value.hint
    # It is no run any more.
    assert list_runs() == []


def test_an_interrupted_deletion_is_finished_by_a_later_one(ended: Run) -> None:
    old, new = (ended.path.parent / f"{removal._ASIDE}{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
        (left / "file").write_text("")
    os.utime(old, (1.0, 1.0))
    remove_run(ended)
    assert not old.exists()
    assert new.exists()


def test_nothing_is_changed_where_the_runs_cannot_be_written(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(UserError, match="cannot be deleted: Permission denied"):
            remove_run(ended)
    assert [run.id for run in list_runs()] == [ended.id]
    assert not list(ended.path.parent.glob(".deleted-*"))
