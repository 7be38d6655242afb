"""A result held against the bars of a gate."""

from __future__ import annotations

import math
from typing import Any

import pytest

from core.config.gate import read_bars
from core.runs.catalog.result import GateFigures, judge
from core.runs.record.events import EvalEvent, Event, ProbeEvent


def measured(step: int, loss: float, **figures: Any) -> EvalEvent:
    return EvalEvent(step=step, loss=loss, perplexity=math.exp(loss), seconds=1.0, **figures)


EVENTS: list[Event] = [
    ProbeEvent(step=0, loss=2.0, seconds=1.0),
    measured(0, 1.0, exact_match=0.1),
    measured(10, 0.3, exact_match=0.9, probe_loss=2.05),
    measured(20, 0.5, exact_match=0.7, probe_loss=2.5),
]


def verdict(*bars: str, step: int = 20, events: list[Event] = EVENTS) -> str:
    return judge(read_bars(bars), GateFigures.of(events, step))


def test_the_result_passes_where_it_reaches_all_bars() -> None:
    assert verdict("loss <= 0.9*before", "exact_match >= 0.7", "probe_loss <= before + 0.5") == ""
    assert verdict() == ""


def test_each_bar_that_is_missed_is_told_with_its_numbers() -> None:
    found = verdict("loss <= 0.4*before", "exact_match >= 0.8", "probe_loss <= before + 0.1")
    assert found == (
        "loss is 0.500 and should be <= 0.400 (loss <= 0.4*before, before 1.00); "
        "exact_match is 0.700 and should be >= 0.800; "
        "probe_loss is 2.50 and should be <= 2.10 (probe_loss <= before + 0.1, before 2.00)"
    )


def test_the_step_of_the_result_counts() -> None:
    assert verdict("exact_match >= 0.8", "probe_loss <= before + 0.1", step=10) == ""


def test_what_was_not_measured_reaches_nothing() -> None:
    assert verdict("loss <= 9", step=30) == "loss was not measured (loss <= 9)"
    assert verdict("valid_json >= 0") == "valid_json was not measured (valid_json >= 0)"
    without = EVENTS[2:]
    assert "loss of the untouched model was not measured" in verdict("loss <= before", events=without)
    broken: list[Event] = [measured(0, 1.0), measured(20, math.nan)]
    assert verdict("loss >= 0", events=broken).startswith("loss is NaN")


@pytest.mark.parametrize("again", [0.2, 0.9])
def test_a_step_that_was_measured_again_counts_as_the_last_time(again: float) -> None:
    found = verdict("loss <= 0.5", events=[*EVENTS, measured(20, again)])
    assert bool(found) is (again > 0.5)
