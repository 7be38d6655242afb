"""The estimate of a run: an earlier run's pace where there is one, else the step time of the memory plan."""

from __future__ import annotations

from typing import Any

import pytest

from core.config.schema import Config
from core.memory.calibration import Calibration
from core.memory.cards import Cards
from core.memory.plan import Machine
from core.memory.rows import Rows, rows_of_tokens
from core.memory.strategy import chosen_strategy
from core.models.architecture.families import read_architecture
from core.runs.outlook.estimate import (
    Estimate,
    NoEstimate,
    PlannedRun,
    RunPace,
    estimate_words,
    expected,
    tell_early_end,
)
from tests.cases import cases
from tests.core.models.architecture import published
from tests.measured_here import bounded_here

__all__ = ["bounded_here"]

CARD = Machine("cuda", 24_000_000_000, device="NVIDIA GeForce RTX 4090", power_limit_w=450.0)
MEASURED = Calibration("a CPU", 10**9, 0.0, "2.13", "2026-01-31", matrix_rate=1e12)


def config_of(**sections: Any) -> Config:
    return Config.model_validate({"model": {"base": "m"}, "data": {"train": "x"}, **sections})


def planned(config: Config, machine: Machine = CARD, rows: Rows | None = None, cards: int = 1) -> PlannedRun:
    architecture = read_architecture(published.LLAMA_3_8B, "m")
    return PlannedRun(chosen_strategy(architecture, config, machine, rows, cards=Cards(cards)), machine, rows)


def never() -> PlannedRun:
    raise AssertionError("planned where it is not needed")


@pytest.mark.parametrize("count", [8, 80_000])
def test_a_measured_pace_is_kept_whatever_the_number_of_rows(count: int) -> None:
    pace = RunPace("earlier", 50.0, 2.0, None, rows_per_step=8)
    found = expected(config_of(), pace, never, count=count)
    assert isinstance(found, Estimate)
    assert (found.by, found.steps) == ("pace", count // 8)
    assert found.seconds == pytest.approx(2.0 * count / 8)
    assert estimate_words(found).basis == "at the pace of earlier"


def test_without_a_run_of_its_kind_the_plan_tells_the_time_and_the_power_limit_the_energy() -> None:
    config, rows = config_of(), rows_of_tokens([500] * 300, 150_000)
    plan = planned(config, rows=rows)
    found = expected(config, None, lambda: plan, count=1600)
    assert isinstance(found, Estimate)
    assert (found.by, found.run, found.steps, found.assumed) == ("plan", "", 200, ())
    assert found.seconds == pytest.approx(200 * plan.chosen.plan.step.seconds)
    assert found.watt_hours == pytest.approx(found.seconds * 450.0 / 3600)
    # 200 steps of 8 rows at the plan's 2,240 tokens a second on this card (docs/performance.md).
    assert found.seconds == pytest.approx(200 * 8 * 500 / 2240, rel=0.8)
    assert estimate_words(found).basis == "by the plan (no run of this kind yet)"


def test_what_the_plan_assumes_is_told() -> None:
    config = config_of(train={"max_length": 1000})
    found = expected(config, None, lambda: planned(config, Machine("cuda", 24_000_000_000)), count=8)
    assert isinstance(found, Estimate)
    assert found.watt_hours is None, "no watts are known of this card"
    what = "rows of 1000 tokens and the speed of a common card assumed"
    assert estimate_words(found).basis == f"by the plan (no run of this kind yet; {what})"


def test_a_card_that_is_not_here_is_called_so() -> None:
    config = config_of()
    rows = rows_of_tokens([500] * 10, 5000)
    elsewhere = Machine("cuda", 24_000_000_000, elsewhere=True)
    found = expected(config, None, lambda: planned(config, elsewhere, rows), count=8)
    assert isinstance(found, Estimate)
    said = "by the plan (for a card that is not here; the speed of a common card assumed)"
    assert (found.elsewhere, estimate_words(found).basis) == (True, said)


@cases(
    ("limits", "seconds", "watt_hours", "step", "said"),
    [
        ({"max_hours": 6}, 21_600, 400, 1200, "ends after 6 h by train.max_hours, at about step 1,200 of 3,000"),
        ({"max_energy_wh": 250}, 13_500, 250, 750, "ends after 250 Wh by train.max_energy_wh, at about step 750 of"),
        ({"max_hours": 6, "max_energy_wh": 250}, 13_500, 250, 750, "by train.max_energy_wh, at about step 750 of 3"),
        ({"max_hours": 0.001}, 3.6, 400 / 6000, 1, "ends after 0.001 h by train.max_hours, at about step 1 of 3,000"),
        ({"max_hours": 15, "max_energy_wh": 1000}, 54_000, 1000, None, ""),
        ({}, 54_000, 1000, None, ""),
    ],
)
def test_an_estimate_goes_as_far_as_the_limits_of_the_run(
    limits: dict[str, float], seconds: float, watt_hours: float, step: int | None, said: str
) -> None:
    pace = RunPace("earlier", 50.0, 18.0, None, rows_per_step=8, watt_hours_per_second=1000 / 54_000)
    found = expected(config_of(train=limits), pace, never, count=24_000)
    assert isinstance(found, Estimate)
    assert found.seconds == pytest.approx(seconds)
    assert found.watt_hours == pytest.approx(watt_hours)
    assert found.steps == 3000
    assert (found.early_end.step if found.early_end is not None else None) == step
    assert estimate_words(found).basis == "at the pace of earlier"
    assert said in ("" if found.early_end is None else tell_early_end(found.early_end))


def test_energy_that_the_plan_takes_at_most_ends_nothing_for_certain() -> None:
    rows = rows_of_tokens([500] * 300, 150_000)
    plan = planned(config_of(), rows=rows)
    whole = expected(config_of(), None, lambda: plan, count=1600)
    found = expected(config_of(train={"max_energy_wh": 1}), None, lambda: plan, count=1600)
    assert isinstance(whole, Estimate)
    assert isinstance(found, Estimate)
    assert (found.seconds, found.watt_hours) == (whole.seconds, 1)
    assert found.early_end is not None
    assert tell_early_end(found.early_end) == "may end before its last step, after 1 Wh by train.max_energy_wh"


def test_the_steps_that_take_longer_count_more() -> None:
    usual, for_a_file = config_of(), config_of(method={"train_for": "q4_0", "name": "lora"})
    one, other = (planned(config, rows=rows_of_tokens([500] * 10, 5000)) for config in (usual, for_a_file))
    found = expected(usual, None, lambda: one, count=1600)
    longer = expected(for_a_file, None, lambda: other, count=1600)
    assert isinstance(found, Estimate)
    assert isinstance(longer, Estimate)
    assert longer.seconds / other.chosen.plan.step.seconds > found.seconds / one.chosen.plan.step.seconds


def test_every_card_takes_its_power_for_its_part_of_the_time() -> None:
    config, rows = config_of(), rows_of_tokens([500] * 300, 150_000)
    one = expected(config, None, lambda: planned(config, rows=rows), count=1600)
    two = expected(config, None, lambda: planned(config, rows=rows, cards=2), count=1600)
    assert isinstance(one, Estimate)
    assert isinstance(two, Estimate)
    assert one.watt_hours is not None
    assert two.watt_hours == pytest.approx(2 * two.seconds * 450.0 / 3600)
    assert two.seconds < one.seconds


def test_a_cpu_has_an_estimate_only_where_it_has_been_measured() -> None:
    config, rows = config_of(), rows_of_tokens([500] * 300, 150_000)
    cpu = Machine("cpu", 64_000_000_000, device="a CPU")
    found = expected(config, None, lambda: planned(config, cpu, rows), count=8)
    assert found == NoEstimate("the speed of this CPU is not known to the plan")
    machine = Machine("cpu", 64_000_000_000, device="a CPU", calibration=MEASURED)
    measured = expected(config, None, lambda: planned(config, machine, rows), count=8)
    assert isinstance(measured, Estimate)
    assert (measured.by, measured.watt_hours, measured.assumed) == ("plan", None, ())


@pytest.mark.parametrize("pace", [None, RunPace("earlier", 50.0, 2.0, None)])
def test_without_a_number_of_steps_nothing_is_planned(pace: RunPace | None) -> None:
    assert expected(config_of(), pace, never) == NoEstimate("the number of its rows is not known")


def test_a_plan_that_cannot_be_made_says_why() -> None:
    assert expected(config_of(), None, lambda: NoEstimate("it is too hot"), count=8) == NoEstimate("it is too hot")
