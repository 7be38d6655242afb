"""Refusals of DeepSpeed before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from core import deepspeed
from core.config.schema import Config
from core.errors import UserError
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.setup.strategy import check_strategy


def test_a_missing_package_is_reported_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed, "PACKAGE", "deepspeed_that_is_not_there")
    config = Config.model_validate(
        {"model": {"base": "x"}, "data": {"train": "x"}, "distributed": {"strategy": "deepspeed"}}
    )
    with pytest.raises(UserError, match="DeepSpeed is not installed") as refused:
        check_strategy(config, Ranks(0, 2))
    assert "pip install 'localtune-tui[deepspeed]'" in refused.value.hint


def test_a_card_that_trains_in_fp16_by_itself_is_refused(tiny_model_dir: Path) -> None:
    from core.worker.distributed.deepspeed import DeepSpeed

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float16)
    config = Config.model_validate({"data": {"train": "x"}, "distributed": {"strategy": "deepspeed"}})
    with pytest.raises(UserError, match="this card trains in fp16"):
        DeepSpeed(Orders(Ranks(0, 2)), config).own_update(model)
