"""Optimizer of a run on a machine that does not support the configured one."""

from __future__ import annotations

import torch

from core.config.schema import Config
from core.worker.setup.device import with_usable_optimizer
from tests.cases import cases
from tests.core.worker.process.told_recorder import ToldRecorder


@cases(
    ("device", "wsl", "optimizer"),
    [("cuda", True, "adamw_8bit"), ("cuda", False, "paged_adamw_8bit"), ("cpu", True, "paged_adamw_8bit")],
)
def test_nothing_is_paged_on_wsl(device: str, wsl: bool, optimizer: str) -> None:
    told = ToldRecorder()
    config = Config.model_validate({"data": {"train": "x"}, "train": {"optimizer": "paged_adamw_8bit"}})
    used = with_usable_optimizer(config, torch.device(device), told, wsl=wsl)
    assert used.train.optimizer == optimizer
    assert [notice.code for notice in told.notices] == (["unpaged"] if optimizer == "adamw_8bit" else [])
    assert all(notice.message.endswith(".") and notice.hint.endswith(".") for notice in told.notices)
    assert config.train.optimizer == "paged_adamw_8bit"
