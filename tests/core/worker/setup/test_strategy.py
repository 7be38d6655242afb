"""Decisions shared by the processes of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from core import deepspeed
from core.analysis.job import analyze
from core.analysis.result import request_for
from core.config.schema import Config
from core.errors import UserError
from core.memory.cards import Cards
from core.memory.rows import Rows, rows_of_lengths
from core.memory.strategy import Chosen
from core.runs.outlook.forecast import forecast
from core.runs.record.store import create_run
from core.worker.checkpoint.checkpointer import config_hash
from core.worker.data.dataset import Dataset
from core.worker.data.encode import TokenizedRow
from core.worker.distributed.orders import Orders
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.strategy import Strategy
from core.worker.process.recorder import Recorder
from core.worker.setup import memory_decision
from core.worker.setup.memory_decision import Planner
from core.worker.setup.preparation import prepare
from core.worker.setup.strategy import check_strategy, settle_options, settle_strategy
from tests.cases import cases
from tests.core.worker.process.told_recorder import ToldRecorder

Patch = pytest.MonkeyPatch


class Two(Ranks):
    """The first of two processes; the other raises flags of its own."""

    def __init__(self, *other: bool) -> None:
        super().__init__(rank=0, count=2)
        self.other = other

    def any(self, flags: Sequence[bool], *, patient: bool = False) -> list[bool]:
        return [ours or theirs for ours, theirs in zip(flags, self.other, strict=True)]


def config_of(base: Path, **options: dict[str, Any]) -> Config:
    return Config.model_validate({"model": {"base": str(base)}, "data": {"train": "rows.jsonl"}, **options})


def rows_of(*lengths: int) -> Dataset:
    return Dataset([TokenizedRow(np.zeros(length, dtype=np.int32), np.ones(length, dtype=bool)) for length in lengths])


def settled(
    base: Path, ranks: Ranks, told: ToldRecorder, dataset: Dataset | None = None, **options: dict[str, Any]
) -> str:
    config, planner = config_of(base, **options), Planner(str(base), torch.device("cpu"))
    found = settle_strategy(config, planner, dataset or rows_of(30, 20), told, ranks)
    return found.distributed.strategy


def small(monkeypatch: Patch, size: int) -> None:
    machine = memory_decision._machine(torch.device("cpu"))
    monkeypatch.setattr(memory_decision, "_with_limit", lambda _: replace(machine, limit_bytes=size))


@cases(
    ("room", "ranks", "options", "strategy", "said"),
    [
        (1 << 40, Two(False), {}, "replicate", []),
        (1 << 20, Two(False), {}, "fsdp2", ["Strategy fsdp2: with the whole model"]),
        (1 << 40, Two(True), {}, "fsdp2", ["Strategy fsdp2: another process's card is too small"]),
        (1 << 20, Two(False), {"train": {"objective": "dpo"}}, "replicate", []),  # it cannot be sharded
        (1 << 40, Ranks.single(), {}, "auto", []),
        (1 << 20, Two(True), {"distributed": {"strategy": "replicate"}}, "replicate", []),
    ],
)
def test_auto_shards_a_model_that_is_too_large_for_any_process(
    tiny_model_dir: Path, monkeypatch: Patch, room: int, ranks: Ranks, options: Any, strategy: str, said: list[str]
) -> None:
    told = ToldRecorder()
    small(monkeypatch, room)
    assert settled(tiny_model_dir, ranks, told, **options) == strategy
    assert [notice.message[: len(said[0])] for notice in told.notices] == said


def test_auto_plans_for_the_lengths_of_the_rows(tiny_model_dir: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": "a few words " * (1 + number % 3)}) + "\n" for number in range(20)))
    options: dict[str, dict[str, Any]] = {
        "train": {"max_length": 512, "batch_size": 8},
        "data": {"train": str(data), "eval_share": 0.0},
    }
    config = config_of(tiny_model_dir, **options)
    lengths = analyze(request_for(config, model=str(tiny_model_dir), template=None)).lengths
    assert lengths is not None
    measured = rows_of_lengths(lengths)
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    recorder = Recorder(create_run(config, "rows"), keeps=False)
    dataset = prepare(config, tiny_model_dir, recorder, lambda: None, None).dataset
    machine = memory_decision._machine(torch.device("cpu"))

    def planned(rows: Rows | None, limit: int, **distributed: str) -> Chosen:
        asked = config_of(tiny_model_dir, **options, distributed=distributed)
        found = forecast(asked, replace(machine, limit_bytes=limit), rows, cards=Cards(2)).chosen
        assert found is not None
        return found

    # The least that a process needs with the whole model.
    short, long = (planned(rows, 1 << 20, strategy="replicate").plan.needed_bytes for rows in (measured, None))
    assert short < long
    for each, strategy in (((short + long) // 2, "replicate"), (short - (1 << 16), "fsdp2")):
        small(monkeypatch, 2 * each)  # the two processes share the machine
        assert planned(measured, 2 * each).strategy == strategy
        assert settled(tiny_model_dir, Two(False), ToldRecorder(), dataset, **options) == strategy
        # By the greatest length, as where rows are not measured, it would not be the same.
        assumed = planned(None, 2 * each)
        assert assumed.strategy == "fsdp2"
        assert assumed.reason.endswith("; all rows are assumed to have train.max_length tokens.")


def test_a_strategy_for_one_process_is_refused_before_the_rows_are_read(tiny_model_dir: Path) -> None:
    none = config_of(tiny_model_dir, distributed={"strategy": "none"})
    check_strategy(none, Ranks.single())
    with pytest.raises(UserError, match=r"distributed\.strategy is none, with 2 processes"):
        check_strategy(none, Ranks(0, 2))


def test_deepspeed_is_refused_where_it_is_missing_and_on_a_card_that_trains_in_fp16(
    tiny_model_dir: Path, monkeypatch: Patch
) -> None:
    from core.worker.distributed.deepspeed import DeepSpeed

    config = config_of(tiny_model_dir, distributed={"strategy": "deepspeed"})
    monkeypatch.setattr(deepspeed, "PACKAGE", "deepspeed_that_is_not_there")
    with pytest.raises(UserError, match="DeepSpeed is not installed") as refused:
        check_strategy(config, Ranks(0, 2))
    assert "pip install 'localtune-tui[deepspeed]'" in refused.value.hint
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float16)
    with pytest.raises(UserError, match="this card trains in fp16"):
        DeepSpeed(Orders(Ranks(0, 2)), config).own_update(model)


class Shared(Strategy):
    """A strategy that shares weights out, as far as its options go."""

    is_sharded = True
    fetches_modules = True


@cases("strategy", ["fsdp2", "deepspeed"])
def test_a_run_goes_on_whatever_is_off_where_weights_are_shared_out(strategy: str) -> None:
    told = ToldRecorder()
    section = {"strategy": strategy, "zero_stage": 3}
    given = {"model": {"base": "x"}, "data": {"train": "x"}, "train": {"compile": True}, "distributed": section}
    config = Config.model_validate(given)
    found = settle_options(config, Shared(Orders(Ranks(0, 2))), told)
    assert config_hash(found) == config_hash(config)
    assert found.memory.gradient_checkpointing == "on"
    begins = [notice.message.split(":")[0] for notice in told.notices]
    assert begins == ["Activations are recomputed", "Layers are not compiled"]
    assert settle_options(config, Strategy(Orders(Ranks(0, 2))), told) is config
