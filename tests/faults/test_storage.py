"""A disk that is full or becomes read-only, files that may not grow: refused before training, survived within it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from core.errors import UserError
from core.launch import launcher
from core.runs.control.client import ControlClient
from core.runs.record.events import CheckpointEvent, NoticeEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import verify_checkpoint
from tests.e2e import workers as e2e
from tests.e2e.workers import Workers
from tests.small_disk import read_only, small_disk
from tests.unprivileged import unprivileged
from tests.waiting import wait_for

PAGE = 4096


@pytest.fixture
def make_on_disk(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Callable[[str], Workers]]:
    """Makes workers whose home is a disk of a given size."""
    made: list[Workers] = []

    def make(size: str) -> Workers:
        mount = disks.enter_context(small_disk(tmp_path / "disk", size))
        workers = Workers(tmp_path, tiny_model_dir)
        workers.home = mount / "home"
        made.append(workers)
        return workers

    with contextlib.ExitStack() as disks:
        yield make
        for workers in made:
            workers.close()


def fill(workers: Workers, leave: int) -> Path:
    """Fill the disk, but for so many bytes."""
    filler = workers.home.parent / "filler"
    with filler.open("ab") as file:
        free = shutil.disk_usage(filler).free
        if free > leave:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free - leave)
    return filler


def ping(run: Run) -> dict[str, object]:
    return ControlClient(run).request("ping")


def test_a_disk_without_room_for_a_checkpoint_is_refused(make_on_disk: Callable[[str], Workers]) -> None:
    run = make_on_disk("48m").start("narrow")
    end = e2e.failure(run)
    assert " free, and a checkpoint needs " in end.reason
    assert "LOCALTUNE_HOME" in end.hint
    assert e2e.steps(run) == []


def test_a_disk_that_fills_up_pauses_training(make_on_disk: Callable[[str], Workers], reference: Run) -> None:
    workers = make_on_disk("96m")
    run = workers.held("filling", 6)
    client = ControlClient(run)
    client.request("pause")
    written = [event.step for event in e2e.only(CheckpointEvent, run)]
    filler = fill(workers, leave=1 << 20)
    client.request("resume")
    wait_for(lambda: "checkpoint_failed" in e2e.notice_codes(run), e2e.PATIENCE, "a checkpoint to fail")
    stopped_at = e2e.wait_until_state(run, "paused").step
    assert stopped_at == written[-1] + 5
    (notice,) = [event for event in e2e.only(NoticeEvent, run) if event.code == "checkpoint_failed"]
    assert notice.level == "error"
    assert f"step {stopped_at} was not written" in notice.message
    assert "resume" in notice.hint
    kept = [run.path / event.path for event in e2e.only(CheckpointEvent, run)][-3:]
    assert [verify_checkpoint(path).step for path in kept] == written[-3:]
    assert sorted(path.name for path in run.checkpoints_path.iterdir()) == [path.name for path in kept]

    # Now not even the record can be written, and training goes on up to the next checkpoint all the same.
    fill(workers, leave=0)
    client.request("resume")
    expected = {"state": "paused", "step": stopped_at + 5, "total_steps": e2e.STEPS}
    wait_for(lambda: expected.items() <= ping(run).items(), e2e.PATIENCE, "the next checkpoint to fail")
    filler.unlink()
    client.request("resume")
    e2e.finish(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    history = read_history(run)
    assert history.skipped <= 1
    assert [event.step for event in e2e.steps(run)][-(e2e.STEPS - stopped_at - 5) :] == list(
        range(stopped_at + 6, e2e.STEPS + 1)
    )
    assert history.end is not None


@pytest.mark.long
def test_an_adapter_that_cannot_be_written_can_be_continued(make_on_disk: Callable[[str], Workers]) -> None:
    workers = make_on_disk("96m")
    run = workers.held("late", 3, train={"max_steps": 12}, checkpoint={"every_steps": 3})
    client = ControlClient(run)
    client.request("pause")
    filler = fill(workers, leave=8 * PAGE)

    def over() -> bool:
        if run.state().is_over:
            return True
        # It may end between this look and the last.
        with contextlib.suppress(UserError):
            if ping(run)["state"] == "paused":
                client.request("resume")
        return False

    wait_for(over, e2e.PATIENCE, "the run to reach its end", interval=0.05)
    end = e2e.failure(run)
    assert end.reason.startswith("The adapter cannot be written")
    assert "No space left" in end.reason
    assert f"continue {run.id}" in end.hint
    assert "checkpoint_failed" in e2e.notice_codes(run)
    assert not run.adapter_path.exists()
    filler.unlink()
    workers.complete(run)
    assert e2e.adapter_bytes(run)
    assert e2e.exit_code(run) == 0


@contextlib.contextmanager
def sealed(directory: Path) -> Iterator[None]:
    """Inside, the user may not write to a directory, nor to any below it."""
    directories = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
    modes = [path.stat().st_mode for path in directories]
    for path in directories:
        path.chmod(0o500)
    try:
        with unprivileged():
            yield
    finally:
        for path, mode in zip(directories, modes, strict=True):
            path.chmod(mode)


@pytest.mark.parametrize("taken", [sealed, pytest.param(read_only, marks=pytest.mark.long)])
def test_a_read_only_home_is_refused(workers: Workers, taken: Callable[[Path], AbstractContextManager[None]]) -> None:
    run = workers.finished("whole", train={"max_steps": 2}, eval={"every_steps": None})
    with taken(workers.home), workers.environment():
        with pytest.raises(UserError, match="is not a directory that can be written to") as refusal:
            launcher.start_run(workers.config(), "late")
        assert refusal.value.hint
        command = [sys.executable, "-m", "tui", "runs", "--json"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert run.id in listed.stdout
        assert read_history(run).end is not None


@contextlib.contextmanager
def limited(run: Run) -> Iterator[None]:
    """Inside, files of a worker may not become as large as a checkpoint: of the record, too, nothing is torn."""
    usual = resource.prlimit(e2e.pid_of(run), resource.RLIMIT_FSIZE, (16 * PAGE, resource.RLIM_INFINITY))
    yield
    resource.prlimit(e2e.pid_of(run), resource.RLIMIT_FSIZE, usual)


@pytest.mark.long
@pytest.mark.parametrize("worn", [lambda run: read_only(run.path.parents[1]), limited], ids=["read-only", "limited"])
def test_a_worn_disk_pauses_training_and_costs_nothing(
    workers: Workers, reference: Run, worn: Callable[[Run], AbstractContextManager[None]]
) -> None:
    run = workers.held("worn", 6)
    client = ControlClient(run)
    step = client.request("pause")["step"]
    with worn(run):
        client.request("resume")
        expected = {"state": "paused", "step": step - step % 5 + 5}
        wait_for(lambda: expected.items() <= ping(run).items(), e2e.PATIENCE, "a checkpoint to fail")
    assert "checkpoint_failed" in e2e.notice_codes(run)
    client.request("resume")
    e2e.finish(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    history = read_history(run)
    assert history.skipped <= 1
    assert history.end is not None
