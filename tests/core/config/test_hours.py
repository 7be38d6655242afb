"""Hours of the day as options have them."""

from __future__ import annotations

from datetime import datetime, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.hours import HoursRange
from core.config.schema import Config, ParkingSection

MINUTES = st.integers(0, 24 * 60 - 1)


def moment(minute: int) -> time:
    return time(minute // 60, minute % 60)


@given(begin=MINUTES, end=MINUTES, minute=MINUTES)
def test_a_range_holds_the_minutes_from_its_beginning_to_its_end(begin: int, end: int, minute: int) -> None:
    hours = HoursRange.parse(f"{begin // 60}:{begin % 60:02d} - {end // 60:02d}:{end % 60:02d}")
    after = (minute - begin) % 1440
    assert (moment(minute) in hours) == (after < ((end - begin) % 1440 or 1440))
    assert (datetime(2026, 1, 1, minute // 60, minute % 60, 59) in hours) == (moment(minute) in hours)


def test_a_range_to_midnight_has_a_name_for_it() -> None:
    hours = HoursRange.parse("18:00-24:00")
    assert moment(1439) in hours
    assert moment(0) not in hours
    assert str(hours) == "18:00 to 24:00"
    assert "18:30" not in hours


@pytest.mark.parametrize("text", ["", "18-23", "18:00", "24:00-07:00", "18:60-19:00", "18:00-24:01", "18:00-19:00:00"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|match"):
        HoursRange.parse(text)
    with pytest.raises(ValueError, match="parking"):
        Config.model_validate({"data": {"train": "rows.jsonl"}, "parking": {"hours": text}})


@pytest.mark.parametrize("hours", ["18:00-23:00", ["9:00 - 12:00", "22:30-06:00"], None])
def test_what_the_options_take_can_be_parsed(hours: str | list[str] | None) -> None:
    for text in ParkingSection(hours=hours).ranges:
        HoursRange.parse(text)
