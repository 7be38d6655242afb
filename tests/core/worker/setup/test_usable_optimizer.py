"""What a run uses instead of what its configuration says, where the machine cannot do that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.config.schema import Config
from core.worker.setup.build import _with_usable_optimizer


class Told:
    """A recorder of warnings."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def warn(self, code: str, message: str, hint: str) -> None:
        assert message.endswith(".")
        assert hint.endswith(".")
        self.codes.append(code)


@pytest.mark.parametrize(
    ("device", "wsl", "optimizer"),
    [("cuda", True, "adamw_8bit"), ("cuda", False, "paged_adamw_8bit"), ("cpu", True, "paged_adamw_8bit")],
)
def test_nothing_is_paged_on_wsl(device: str, wsl: bool, optimizer: str) -> None:
    told: Any = Told()
    config = Config.model_validate({"data": {"train": "x"}, "train": {"optimizer": "paged_adamw_8bit"}})
    used = _with_usable_optimizer(config, torch.device(device), told, wsl=wsl)
    assert used.train.optimizer == optimizer
    assert told.codes == (["unpaged"] if optimizer == "adamw_8bit" else [])
    assert config.train.optimizer == "paged_adamw_8bit"
