"""The machine that several cards are planned for: the one with the least free memory, and how many there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.hardware.snapshot import Device
from core.memory.cards import Cards
from core.memory.plan import Machine
from core.runs.outlook.forecast import cards_here, forecast, this_machine
from tests.cases import cases
from tests.core.models.architecture import published
from tests.measured_here import bounded_here

__all__ = ["bounded_here"]

CARDS = [
    Device(index=0, kind="cuda", name="A", uuid="GPU-aa", memory_used=2_000, memory_total=24_000),
    Device(index=1, kind="cuda", name="B", uuid="GPU-bb", memory_used=14_000, memory_total=24_000),
    Device(index=2, kind="cuda", name="C", uuid="GPU-cc", memory_used=20_000, memory_total=24_000),
    Device(index=0, kind="cpu", name="CPU", memory_used=9, memory_total=64_000),
]


@pytest.fixture(autouse=True)
def three_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: CARDS)
    monkeypatch.setattr("core.hardware.torch_check.obstacle_here", lambda _gpu: None)


def configured(base: str = "x", **sections: Any) -> Config:
    return Config.model_validate({"model": {"base": base}, "data": {"train": "x"}, **sections})


@cases(
    ("sections", "name", "cards"),
    [
        ({}, "A", Cards(1)),
        ({"hardware": {"gpu": "1"}}, "B", Cards(1)),
        ({"distributed": {"gpus": ["0", "1"]}}, "B", Cards(2)),
        ({"distributed": {"gpus": ["GPU-aa", "GPU-cc"]}}, "C", Cards(2)),
        ({"distributed": {"gpus": "all"}}, "C", Cards(3)),
        ({"distributed": {"gpus": "all", "processes": 2}}, "C", Cards(2)),
        ({"distributed": {"gpus": "0", "hosts": ["tower"], "address": "10.0.0.1"}}, "A", Cards(1, 2)),
    ],
)
def test_the_smallest_card_of_the_run_is_planned_for(sections: dict[str, Any], name: str, cards: Cards) -> None:
    config = configured(**sections)
    assert this_machine(config).device == name
    assert cards_here(config) == cards


def test_a_card_of_another_machine_counts_as_many_times_as_it_is_said() -> None:
    config = configured(distributed={"processes": 4})
    assert this_machine(config, 24_000_000_000).limit_bytes == 24_000_000_000
    assert cards_here(config) == Cards(4)


def test_a_forecast_is_of_one_card_and_fits_if_the_machine_has_memory_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published.LLAMA_3_8B))
    one = forecast(configured(str(tmp_path)), Machine("cuda", 24_000_000_000))
    assert (one.chosen, one.each, one.fits) == (None, "", True)
    section = {"processes": 2, "strategy": "fsdp2", "offload": "all"}
    both = forecast(
        configured(str(tmp_path), distributed=section), Machine("cuda", 24_000_000_000, host_bytes=3_000_000_000)
    )
    assert both.chosen is not None
    assert (both.each, both.plan.fits, both.fits) == ("on each of 2 cards", True, False)
    threads = forecast(configured(str(tmp_path), distributed={"processes": 2}), Machine("cpu", 64_000_000_000))
    assert threads.each == "on each of 2 processes"
