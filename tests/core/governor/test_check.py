"""Limits and wishes that cannot be kept, reported before the start."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from unittest.mock import Mock

import pytest

from core.config.schema import Config
from core.governor import check
from core.governor.check import unkept, unkept_here, unkept_on
from core.governor.limits import Limits
from core.hardware.snapshot import Device
from tests.cases import cases

BLIND = Device(index=0, kind="cpu", name="Some CPU")
NOON = datetime(2026, 11, 26, 12, 0).timestamp()
EVERY = Limits(temperature_c=80, memory_temperature_c=90, power_w=200, energy_kwh=1, quiet_power_w=100)


def config(**sections: Any) -> Config:
    return Config.model_validate({"data": {"train": "x"}, **sections})


def test_each_option_without_its_meter_is_named() -> None:
    found = list(unkept(EVERY, BLIND, NOON))
    assert [item.option for item in found] == [
        "hardware.temperature_limit_c",
        "hardware.memory_temperature_limit_c",
        "hardware.power_limit_w",
        "night.energy_kwh",
        "night.quiet_power_w",
    ]
    assert all(item.sentence.endswith(f"so {item.option} cannot be kept.") for item in found)


@cases(
    "device",
    [
        replace(BLIND, temperature_c=50.0, memory_temperature_c=60.0, power_w=80.0),
        # A counter of energy does where power is known with the second reading only.
        replace(BLIND, temperature_c=50.0, memory_temperature_c=60.0, energy_j=0.0),
        replace(BLIND, problem="GPU is lost"),
        None,
    ],
)
def test_what_is_reported_or_not_known_is_no_refusal(device: Device | None) -> None:
    assert not list(unkept(EVERY, device, NOON))


def test_a_deadline_within_quiet_hours_needs_no_meter() -> None:
    limits = Limits.of(config(night={"quiet_hours": "11:00-13:00", "deadline": "12:30"}))
    (found,) = unkept(limits, None, NOON)
    assert found.option == "night.deadline"
    assert "13:00" in found.hint
    assert not list(unkept(limits, None, NOON - 7200)), "an hour is left before them"
    assert not list(unkept(replace(limits, quiet_power_w=100.0), None, NOON))
    assert not unkept_on(BLIND, config(night={"deadline": "25:00"})), "its own rule tells it"


def test_meters_are_read_only_where_a_limit_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Mock(return_value=BLIND)
    monkeypatch.setattr(check, "read_device", read)
    assert not unkept_here(config(night={"deadline": "07:00"}, hardware={"disk_free_min_gb": 1.0}))
    read.assert_not_called()
    (found,) = unkept_here(config(night={"energy_kwh": 1.0}, hardware={"device": "cpu"}))
    assert found.option == "night.energy_kwh"
    read.assert_called_once_with("cpu", None)
