"""Device of a run: notices of its governor, and a usable optimizer."""

from __future__ import annotations

import pytest
import torch

from core.config.schema import Config
from core.notify import Notice
from core.runs.record.events import GovernorEvent
from core.worker.setup import build as settled
from core.worker.setup.build import with_usable_optimizer
from tests.cases import cases
from tests.core.worker.process.told_recorder import ToldRecorder


def test_a_pause_for_disk_space_is_reported_to_the_user_and_one_for_heat_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = ToldRecorder()
    told: list[Notice] = []
    monkeypatch.setattr(settled, "notify", told.append)
    heat = GovernorEvent(action="pause", cause="temperature", value=91.0, limit=80.0)
    disk = GovernorEvent(action="pause", cause="disk", value=1e9, limit=2e9)
    for event in (heat, disk):
        settled._tell(recorder, event)
    assert recorder.events == [heat, disk]
    assert [(notice.state, notice.run) for notice in told] == [("paused", "r")]
    assert told[0].reason


@cases(
    ("device", "wsl", "optimizer"),
    [("cuda", True, "adamw_8bit"), ("cuda", False, "paged_adamw_8bit"), ("cpu", True, "paged_adamw_8bit")],
)
def test_nothing_is_paged_on_wsl(device: str, wsl: bool, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled, "is_wsl", lambda: wsl)
    told = ToldRecorder()
    config = Config.model_validate({"data": {"train": "x"}, "train": {"optimizer": "paged_adamw_8bit"}})
    used = with_usable_optimizer(config, torch.device(device), told)
    assert used.train.optimizer == optimizer
    assert [notice.code for notice in told.notices] == (["unpaged"] if optimizer == "adamw_8bit" else [])
    assert all(notice.message.endswith(".") and notice.hint.endswith(".") for notice in told.notices)
    assert config.train.optimizer == "paged_adamw_8bit"
