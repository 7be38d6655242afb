"""Wishes for the night against the estimate of a run that has not started yet."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from core.config.schema import Config
from core.runs.outlook.estimate import Estimate, NoEstimate
from core.runs.outlook.forecast import unmet, wants_plan
from tests.cases import cases

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


def test_rests_of_the_earlier_run_are_no_reason() -> None:
    assert not list(unmet(night(deadline="07:00"), measured(10.6, work_share=0.7), EVENING))


@pytest.mark.parametrize(("power", "count"), [(None, 1), (150.0, 0)])
def test_quiet_hours_are_waited_through_unless_it_trains_quietly(power: float | None, count: int) -> None:
    config = night(deadline="07:00", quiet_hours="23:00-06:00", quiet_power_w=power)
    assert len(list(unmet(config, measured(4.0), EVENING))) == count


def test_the_memory_plan_only_warns_and_says_what_it_is() -> None:
    plan = Estimate(10.6 * HOUR, 100, 9000.0, "", "plan", ("rows of 2048 tokens",))
    (told,) = unmet(night(deadline="07:00", energy_kwh=1.0), plan, EVENING)
    assert (told.option, told.is_measured) == ("night.deadline", False)
    assert "by the memory plan (an estimate, no run of this kind yet; rows of 2048 tokens assumed)" in told.sentence


@cases(
    ("limit", "power", "count"),
    [(0.5, None, 1), (0.75, None, 0), (0.85, None, 0), (0.6, 200.0, 0), (0.5, 200.0, 1)],
)
def test_an_energy_that_no_duty_cycle_can_do_with(limit: float, power: float | None, count: int) -> None:
    config = night(energy_kwh=limit, hardware={"power_limit_w": power})
    found = list(unmet(config, measured(4.0, 0.8), None))
    assert len(found) == count
    if found:
        assert str(found[0]).startswith(
            f"{limit:.2f} kWh cannot be met: it takes 0.80 kWh by the pace of faq-1. Set 0.82"
        )


@cases("found", [None, NoEstimate("no rows"), measured(4.0)])
def test_what_is_not_known_refuses_nothing(found: Estimate | NoEstimate | None) -> None:
    assert not list(unmet(night(energy_kwh=0.1), found, EVENING))


def test_a_time_that_is_none_is_left_to_the_rules() -> None:
    assert not list(unmet(night(deadline="25:00"), measured(90.0), EVENING))
    assert wants_plan(night(deadline="25:00"))
    assert not wants_plan(night(quiet_hours="23:00-07:00"))
