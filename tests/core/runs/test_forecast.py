"""The machine that several cards are planned for: the one with the least free memory, and how many there are."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.hardware.drivers import Build
from core.hardware.snapshot import Device
from core.memory.calibration import Calibration, write_calibration
from core.memory.cards import Cards
from core.memory.plan import Machine
from core.runs.outlook.energy import Tariff, energy_words
from core.runs.outlook.estimate import Estimate, NoEstimate
from core.runs.outlook.forecast import cards_here, forecast, this_machine, unmet, wants_plan
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
    # A card of another machine counts as many times as it is said.
    config = configured(distributed={"processes": 4})
    assert this_machine(config, 24_000_000_000).limit_bytes == 24_000_000_000
    assert cards_here(config) == Cards(4)


def test_an_amd_card_is_planned_for_with_what_its_self_test_has_measured(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device(index=0, kind="rocm", name="RX 7900", uuid="AMD-1", memory_used=2_000, memory_total=24_000)
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [card])
    assert this_machine(configured()).kind == "cpu"
    measured = Calibration("RX 7900", 1 << 29, 0.06, "2.12.0", "2026-11-30")
    write_calibration(measured)
    for version, expandable in (("2.12.0+rocm7.2", True), ("2.11.0+rocm7.2", False)):
        build = Build(version, hip="7.2.26015")
        monkeypatch.setattr("core.hardware.drivers.installed_build", lambda build=build: build)
        found = this_machine(configured())
        assert (found.kind, found.device, found.limit_bytes, found.calibration) == ("cuda", "RX 7900", 22_000, measured)
        assert (found.expandable, found.pages, found.cuda_build) == (expandable, False, False)
        assert cards_here(configured(distributed={"gpus": "all"})) == Cards(1)


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


EVENING = datetime(2026, 11, 26, 22, 0).timestamp()
HOUR = 3600.0


def night(**values: Any) -> Config:
    hardware = values.pop("hardware", {})
    return Config.model_validate({"data": {"train": "x"}, "night": values, "hardware": hardware})


def measured(hours: float, kwh: float | None = None, **values: Any) -> Estimate:
    return Estimate(hours * HOUR, 100, None if kwh is None else 1000 * kwh, "faq-1", "pace", **values)


def test_a_deadline_that_an_earlier_run_shows_to_be_too_early() -> None:
    (told,) = unmet(night(deadline="07:00"), measured(10.6), EVENING)
    assert told.is_measured
    assert str(told) == (
        "07:00 cannot be met: at full speed, by the pace of faq-1, it ends at 08:36. "
        "Set 08:50 or later, or train fewer steps."
    )
    assert not list(unmet(night(deadline="08:50"), measured(10.6), EVENING))
    assert not list(unmet(night(deadline="07:00"), measured(10.6), None)), "nobody knows when it begins"
    assert not list(unmet(night(deadline="07:00"), measured(10.6, work_share=0.7), EVENING)), "it rested"


def test_quiet_hours_are_waited_through_unless_it_trains_quietly() -> None:
    for power, count in ((None, 1), (150.0, 0)):
        config = night(deadline="07:00", quiet_hours="23:00-06:00", quiet_power_w=power)
        assert len(list(unmet(config, measured(4.0), EVENING))) == count


def test_the_memory_plan_only_warns_and_says_what_it_is() -> None:
    plan = Estimate(10.6 * HOUR, 100, 9000.0, "", "plan", ("rows of 2048 tokens",))
    (told,) = unmet(night(deadline="07:00", energy_kwh=1.0), plan, EVENING)
    assert (told.option, told.is_measured) == ("night.deadline", False)
    assert "by the memory plan (an estimate, no run of this kind yet; rows of 2048 tokens assumed)" in told.sentence
    guess = Estimate(10.6 * HOUR, 100, None, "", "guess")
    assert not list(unmet(night(deadline="07:00"), guess, EVENING)), "a guess by the size of the model proves nothing"


@cases(
    ("limit", "power", "count"), [(0.5, None, 1), (0.75, None, 0), (0.85, None, 0), (0.6, 200.0, 0), (0.5, 200.0, 1)]
)
def test_an_energy_that_no_duty_cycle_can_do_with(limit: float, power: float | None, count: int) -> None:
    config = night(energy_kwh=limit, hardware={"power_limit_w": power})
    found = list(unmet(config, measured(4.0, 0.8), None))
    assert len(found) == count
    if found:
        assert str(found[0]).startswith(
            f"{limit:.2f} kWh cannot be met: it takes 0.80 kWh by the pace of faq-1. Set 0.82"
        )


def test_what_is_not_known_refuses_nothing() -> None:
    for found in (None, NoEstimate("no rows"), measured(4.0)):
        assert not list(unmet(night(energy_kwh=0.1), found, EVENING))
    # A time that is none is left to the rules.
    assert not list(unmet(night(deadline="25:00"), measured(90.0), EVENING))
    assert wants_plan(night(deadline="25:00"))
    assert not wants_plan(night(quiet_hours="23:00-07:00"))


@cases(
    ("price", "energy", "words"),
    [
        (0.32, 4_100.0, ["4100.0 Wh", "1.31 EUR"]),
        (0.32, 1.9, ["1.9 Wh", "< 0.01 EUR"]),
        (0.0, 1.9, ["1.9 Wh", "0.00 EUR"]),
        (0.32, 0.0, ["0.0 Wh", "0.00 EUR"]),
        (None, 1.9, ["1.9 Wh"]),
        (0.32, None, []),
    ],
)
def test_energy_and_its_cost(price: float | None, energy: float | None, words: list[str]) -> None:
    assert energy_words(energy, Tariff(price, "EUR")) == words


def test_the_price_is_that_of_the_configuration() -> None:
    assert Tariff(2, "\x1b[31mkronor and more").words(1500.0) == "3.00 \ufffd[31mkr…"
    for price in (None, "0.3", True, -1, math.inf, math.nan, [1]):
        assert Tariff.of({"hardware.tariff": price}).words(5.0) == ""
    assert Tariff.of({"hardware.tariff": 1, "hardware.currency": "kr"}) == Tariff(1.0, "kr")
    assert Tariff.of({"hardware.tariff": 0.3, "hardware.currency": 5}) == Tariff(0.3, "")
    assert Tariff.of({}) == Tariff()
