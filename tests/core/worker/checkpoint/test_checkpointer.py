"""Order in which a checkpoint and its events reach the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from core.config.schema import CheckpointSection, Config, DataSection
from core.errors import UserError
from core.runs.record.events import CheckpointEvent, NoticeEvent, StoppedEvent
from core.runs.record.store import confirm_checkpoints, create_run
from core.worker.checkpoint import checkpointer as module
from core.worker.checkpoint.checkpoint import DISK_RESERVE_BYTES, Checkpoint
from core.worker.checkpoint.checkpointer import Checkpointer, Fingerprints, config_hash, find_checkpoint
from core.worker.oom.retry import MemoryShortageError
from core.worker.process.recorder import Recorder
from tests.core.worker.process.test_recorder import step
from tests.core.worker.steps.stepper import make_state
from tests.e2e.workers import only, steps

CONFIG = Config(data=DataSection(train="rows.jsonl"), checkpoint=CheckpointSection(keep=1))


@pytest.fixture
def recorder(private_home: Path) -> Iterator[Recorder]:
    made = Recorder(create_run(CONFIG, "test"))
    yield made
    made.close("stopped", "", StoppedEvent(reason="", step=3))


@pytest.fixture
def checkpointer(recorder: Recorder) -> Checkpointer:
    """Checkpointer of a run after three steps."""
    state = make_state(8)
    state.step, state.total_steps = 3, 9
    fingerprints: Any = SimpleNamespace(data="d", held_out="", base=SimpleNamespace(value="b"))
    loaded: Any = SimpleNamespace(model=nn.Linear(2, 2))
    update: Any = SimpleNamespace(state_dict=dict)
    nothing: Any = None
    return Checkpointer(CONFIG, loaded, update, state, nothing, fingerprints, None, recorder)


def test_events_up_to_a_checkpoint_are_durable_before_it_is(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = checkpointer.recorder.run, list[str]()
    for number in (1, 2, 3):
        checkpointer.recorder.event(step(number))
    replace, fsync = os.replace, os.fsync

    def note_sync(file: int) -> None:
        if os.path.samestat(os.fstat(file), run.events_path.stat()):
            done.append(f"events to step {steps(run)[-1].step}")
        fsync(file)

    def note_rename(old: Any, new: Any) -> None:
        done.extend([Path(new).name] if Path(new).parent == run.checkpoints_path else [])
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note_sync)
        patch.setattr(os, "replace", note_rename)
        checkpointer.save()
    assert done == ["events to step 3", "step-00000003"]
    assert only(CheckpointEvent, run)


def test_a_run_with_a_loss_of_another_kernel_goes_on_only_if_asked(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, off = (
        Config.model_validate({"data": {"train": "rows.jsonl"}, "memory": {"liger": value}})
        for value in ("auto", "off")
    )
    for kernel, config in (("0.8.5", off), (None, asked), (None, off)):
        found: Any = SimpleNamespace(manifest={"config_sha256": config_hash(asked), "liger": kernel})
        monkeypatch.setattr(module, "newest_checkpoint", lambda _, found=found: found)
        assert find_checkpoint(config, recorder) is found
    found.manifest["liger"] = "0.8.5"
    with pytest.raises(UserError, match=r"summed the loss .* with Liger's kernel") as refused:
        find_checkpoint(asked, recorder)
    assert "memory.liger = off" in refused.value.hint


def test_checkpoints_go_through_a_link_only_if_the_user_confirmed_it(
    checkpointer: Checkpointer, tmp_path: Path
) -> None:
    run, outside = checkpointer.recorder.run, tmp_path / "outside"
    (outside / "step-00000001" / "mine").mkdir(parents=True)
    run.checkpoints_path.symlink_to(outside)
    checkpointer.save()
    assert checkpointer.state.paused
    (notice,) = only(NoticeEvent, run)
    assert "was not written: " in notice.message
    assert "checkpoints is a link to" in notice.message
    with pytest.raises(UserError, match="is a link to"):
        checkpointer.drop_after(1)
    assert [path.name for path in outside.iterdir()] == ["step-00000001"]
    confirm_checkpoints(run, outside)
    checkpointer.save()
    assert [path.name for path in outside.iterdir()] == ["step-00000003"]
    assert [saved.path for saved in only(CheckpointEvent, run)] == ["checkpoints/step-00000003"]


def test_the_checkpoint_of_the_middle_stays_where_the_disk_allows(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, run = checkpointer.state, checkpointer.recorder.run

    def saved(*taken: int) -> list[int]:
        for state.step in taken:
            checkpointer.save()
        return sorted(int(path.name.removeprefix("step-")) for path in run.checkpoints_path.iterdir())

    assert saved(2, 4, 6, 8) == [4, 8]
    monkeypatch.setattr(module, "free_bytes", lambda _: None)
    assert saved(9) == [4, 9]
    monkeypatch.setattr(module, "free_bytes", lambda _: DISK_RESERVE_BYTES)
    assert saved(10, 11) == [11]
    (notice,) = only(NoticeEvent, run)
    assert (notice.code, notice.level) == ("middle_dropped", "info")
    assert notice.message == "The checkpoint of step 4, in the middle of the run, is not kept: the disk is short."


def test_no_checkpoint_of_the_middle_is_kept_of_trained_model_weights(checkpointer: Checkpointer) -> None:
    checkpointer.config = CONFIG.with_options(method={"name": "full"})
    for checkpointer.state.step in (4, 6, 8):
        checkpointer.save()
    (kept,) = checkpointer.recorder.run.checkpoints_path.iterdir()
    assert kept.name == "step-00000008"


def test_states_that_do_not_fit_when_a_run_goes_on_are_tried_again(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails: list[Exception] = []
    restored: list[Checkpoint] = []

    def restore(found: Checkpoint) -> None:
        restored.append(found)
        if fails:
            raise fails.pop()

    same: Any = SimpleNamespace(value="b", matches=lambda _: True)
    monkeypatch.setattr(checkpointer, "restore", restore)
    monkeypatch.setattr(checkpointer, "fingerprints", Fingerprints("d", "", same))
    found = Checkpoint(Path("step-00000003"), {"data_sha256": "d", "base_sha256": "b", "overrides": {}})
    fails += [torch.OutOfMemoryError("CUDA out of memory.")] * 2
    checkpointer.resume(found)
    assert len(restored) == 3
    fails += [torch.OutOfMemoryError("CUDA out of memory.")] * 3
    with pytest.raises(MemoryShortageError, match="Memory ran out at step-00000003 in restoring it"):
        checkpointer.resume(found)
