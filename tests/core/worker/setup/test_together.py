"""What the processes of a run settle together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from core.config.schema import Config
from core.worker.checkpoint.checkpointer import config_hash
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.replicate import Replicate
from core.worker.process.recorder import Recorder
from core.worker.setup import memory_decision
from core.worker.setup.together import settle_options, settle_strategy


class Two:
    """The first of two processes; the other raises flags of its own."""

    is_single, count = False, 2

    def __init__(self, *other: bool) -> None:
        self.other = other

    def any(self, flags: Sequence[bool]) -> list[bool]:
        return [ours or theirs for ours, theirs in zip(flags, self.other, strict=True)]


class Told:
    """What a recorder is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def notice(self, level: str, code: str, message: str, hint: str = "") -> None:
        self.messages.append(message)


def settled(base: Path, ranks: object, told: Told, **options: dict[str, Any]) -> str:
    config = Config.model_validate({"model": {"base": str(base)}, "data": {"train": "rows.jsonl"}, **options})
    found = settle_strategy(config, torch.device("cpu"), cast(Recorder, told), cast(Ranks, ranks))
    return found.distributed.strategy


def small(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    machine = memory_decision._machine(torch.device("cpu"))
    monkeypatch.setattr(memory_decision, "_with_limit", lambda _: replace(machine, limit_bytes=size))


def test_auto_replicates_what_fits(tiny_model_dir: Path) -> None:
    told = Told()
    assert settled(tiny_model_dir, Two(False), told) == "replicate"
    assert not told.messages


def test_auto_shares_out_what_is_too_large_and_says_so(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    small(monkeypatch, 1 << 20)
    assert settled(tiny_model_dir, Two(False), told) == "fsdp2"
    assert "Strategy fsdp2: with the whole model" in told.messages[0]


def test_auto_takes_the_same_in_every_process(tiny_model_dir: Path) -> None:
    told = Told()
    assert settled(tiny_model_dir, Two(True), told) == "fsdp2"
    assert "another process's card is too small" in told.messages[0]


def test_auto_replicates_what_cannot_be_shared_out(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 1 << 20)
    assert settled(tiny_model_dir, Two(False), Told(), train={"objective": "dpo"}) == "replicate"


def test_one_process_and_a_named_strategy_stay(tiny_model_dir: Path) -> None:
    assert settled(tiny_model_dir, Ranks.single(), Told()) == "auto"
    assert settled(tiny_model_dir, Two(True), Told(), distributed={"strategy": "replicate"}) == "replicate"


class Shared(Replicate):
    """A strategy that shares weights out, as far as its options go."""

    is_sharded = True
    fetches_modules = True


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed"])
def test_a_run_goes_on_whatever_is_off_where_weights_are_shared_out(strategy: str) -> None:
    told = Told()
    section = {"strategy": strategy, "zero_stage": 3}
    given = {"model": {"base": "x"}, "data": {"train": "x"}, "train": {"compile": True}, "distributed": section}
    config = Config.model_validate(given)
    found = settle_options(config, Shared(Ranks(0, 2)), cast(Recorder, told))
    assert config_hash(found) == config_hash(config)
    assert found.memory.gradient_checkpointing == "on"
    assert [message.split(":")[0] for message in told.messages] == [
        "Activations are recomputed",
        "Layers are not compiled",
    ]
    assert settle_options(config, Replicate(Ranks(0, 2)), cast(Recorder, told)) is config
