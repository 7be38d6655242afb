"""Building of a run: too little memory is an error with advice or drops copies, and its device is cared for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from core.config.schema import Config
from core.errors import UserError
from core.hardware.drivers import Build
from core.notify import Notice
from core.quantization.result import sentence
from core.runs.record.events import FailedEvent, GovernorEvent, NoticeEvent
from core.runs.record.store import Run, create_run
from core.worker.fused.frozen_weight import FrozenWeight
from core.worker.oom import retry
from core.worker.oom.retry import MemoryShortageError
from core.worker.process.control import Controls
from core.worker.process.recorder import Recorder
from core.worker.setup import build as settled
from core.worker.setup import strategy as shared
from core.worker.setup.build import Parts, build, with_usable_optimizer
from tests.cases import cases
from tests.core.quantization.test_result import COST
from tests.core.worker.process.told_recorder import ToldRecorder
from tests.e2e.workers import only
from tests.families.tiny import write_family
from tests.measured_here import measured_here

__all__ = ["measured_here"]

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def full(*_: object, **__: object) -> Any:
    raise torch.OutOfMemoryError(FULL)


class Start:
    """The beginning of a run in this process."""

    def __init__(self, directory: Path, base: Path) -> None:
        rows = [{"prompt": f"Sort ticket {number}.", "completion": '{"kind": "bug"}'} for number in range(8)]
        (directory / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        self._data, self.base = str(directory / "rows.jsonl"), str(base)
        self.recorder: Recorder | None = None

    def __call__(self, **sections: dict[str, Any]) -> Parts:
        values = {"model": {"base": self.base}, "data": {"train": self._data}, "hardware": {"device": "cpu"}}
        config = Config.model_validate(values | sections)
        self.recorder = Recorder(create_run(config, "start"))
        return build(config, self.recorder, Controls(), None)

    @property
    def run(self) -> Run:
        assert self.recorder is not None
        return self.recorder.run

    def notices(self, code: str) -> list[NoticeEvent]:
        return [notice for notice in only(NoticeEvent, self.run) if notice.code == code]


@pytest.fixture
def start(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Start]:
    made = Start(tmp_path, tiny_model_dir)
    yield made
    if made.recorder is not None:
        made.recorder.close("failed", "", FailedEvent(reason="", step=0, adapter=None))


@pytest.mark.parametrize(
    ("where", "sections", "place", "advice"),
    [
        ("setup.ready_model.attach_adapters", {}, "in attaching the adapters", "Lower method.rank."),
        ("model.adapters.best_factors", {"method": {"init": "pissa"}}, "adapters", "Set method.init = default"),
        ("model.adapters.best_factors", {"method": {"init": "loftq"}}, "adapters", "Set method.init = default"),
        ("setup.ready_model.choose_weights", {"method": {"name": "full"}}, "in choosing the weights", "smaller model"),
        ("setup.ready_model.fuse_layers", {}, "in fusing the layers", "Set train.fused_layers = false."),
        ("setup.objective.check_model", {}, "in the check of the model", "Close what else holds memory"),
        ("setup.ready_model.create_handles", {}, "in creating the handles", "Close what else holds memory"),
    ],
)
def test_running_out_of_memory_before_the_first_step_is_a_user_error(
    start: Start, monkeypatch: pytest.MonkeyPatch, where: str, sections: dict[str, Any], place: str, advice: str
) -> None:
    monkeypatch.setattr(f"core.worker.{where}", full)
    with pytest.raises(MemoryShortageError) as caught:
        start(**sections)
    assert place in caught.value.message
    assert advice in caught.value.hint


def test_a_model_too_large_is_a_user_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.worker.model.model.causal_lm", full)
    with pytest.raises(UserError, match="does not fit on cpu"):
        start()


def test_copies_of_weights_that_do_not_fit_are_dropped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = FrozenWeight.keep
    kept: list[FrozenWeight] = []

    def until_it_is_full(weight: FrozenWeight, dtype: torch.dtype) -> None:
        if len(kept) == 3:
            full()
        keep(weight, dtype)
        kept.append(weight)

    monkeypatch.setattr(FrozenWeight, "keep", until_it_is_full)
    parts = start(memory={"keep_dequantized": "on"})
    assert len(kept) == 3
    assert not any(weight.is_kept for weight in kept)
    assert not parts.meter.fused.keeps_weights
    (notice,) = start.notices("memory_weights")
    assert FULL in notice.message


def test_handles_are_created_on_a_card_by_a_product_that_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    retry.multiply_both_ways(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    multiplied: list[torch.device] = []
    monkeypatch.setattr(retry, "multiply_both_ways", multiplied.append)
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        retry.create_handles(device)
    assert multiplied == [torch.device("cuda", 0)]


def test_without_a_memory_plan_auto_reports_that_it_keeps_no_layers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "spare_bytes", lambda *_: None)
    monkeypatch.setattr(shared, "measure_cost", lambda *_, **__: pytest.fail("measured"))
    start(model={"base": start.base, "keep_16bit": "auto"})
    (notice,) = start.notices("quantization")
    assert "keeps no layers: the memory of this model cannot be planned" in notice.message
    assert start.run.config().model.keep_16bit is None


def test_a_run_in_16_bit_measures_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "measure_cost", lambda *_, **__: pytest.fail("measured"))
    start(model={"base": start.base, "keep_16bit": "auto"}, method={"name": "lora"})
    assert start.notices("quantization") == []


def test_a_run_uses_earlier_measurements(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "recall", lambda *_: COST)
    monkeypatch.setattr(shared, "measure_cost", lambda *_, **__: pytest.fail("measured"))
    parts = start(model={"base": start.base, "keep_16bit": "auto"})
    (notice,) = start.notices("quantization")
    assert notice.message == sentence(COST)
    quantized = {name for name, module in parts.loaded.model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert any(".layers.1." in name for name in quantized)
    assert not any(".layers.0." in name for name in quantized)
    assert start.run.config().model.keep_16bit == ["model.layers.0.*", "model.layers.2.*"]


@pytest.mark.long
def test_experts_that_stay_in_16_bit_are_reported(start: Start, tmp_path: Path) -> None:
    start.base = str(write_family("llama4", tmp_path / "llama4"))
    parts = start()
    (notice,) = start.notices("experts")
    assert "The experts stay in 16 bit, where they take 197 kB" in notice.message
    # Its routers return more than a layer does, and get no adapters.
    assert not any("router" in name for name, _ in parts.loaded.model.named_parameters() if "lora_" in name)


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
    ("device", "wsl", "hip", "optimizer"),
    [
        ("cuda", True, None, "adamw_8bit"),
        ("cuda", False, "7.2", "adamw_8bit"),
        ("cuda", False, None, "paged_adamw_8bit"),
        ("cpu", True, "7.2", "paged_adamw_8bit"),
    ],
)
def test_nothing_is_paged_on_wsl_and_on_rocm(
    device: str, wsl: bool, hip: str | None, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled, "is_wsl", lambda: wsl)
    monkeypatch.setattr(settled, "torch_build", lambda: Build("2.13.0", hip=hip))
    told = ToldRecorder()
    config = Config.model_validate({"data": {"train": "x"}, "train": {"optimizer": "paged_adamw_8bit"}})
    used = with_usable_optimizer(config, torch.device(device), told)
    assert used.train.optimizer == optimizer
    assert [notice.code for notice in told.notices] == (["unpaged"] if optimizer == "adamw_8bit" else [])
    assert all(notice.message.endswith(".") and notice.hint.endswith(".") for notice in told.notices)
    assert config.train.optimizer == "paged_adamw_8bit"
