from __future__ import annotations

import time

from core.governor.promise import Promise
from core.governor.words import describe, in_place, news, promised, stopped_by
from core.units import format_moment
from tests.cases import cases


@cases(
    ("action", "said"),
    [
        (("slow", "temperature", 81.4, 80.0, 0.6), "slowed to 60 % to hold 80 °C"),
        (("slow", "plan", None, None, 0.7), "slowed to 70 % by the plan for the night"),
        (("full", "temperature", 74.0, 80.0, 1.0), "at full speed again"),
        (("power_limit", "power", 200.0, 200.0, None), "the card's power limit is 200 W now"),
        (("power_limit", "power", None, None, None), "the card's own power limit again"),
        (("pause", "temperature", 86.0, 83.0, None), "paused: the device is at 86 °C (limit 83 °C), until 78 °C"),
        (("pause", "quiet hours", 0.0, None, None), f"paused: quiet hours until {format_moment(0.0, '%H:%M')}"),
        (("resume", "quiet hours", None, None, None), "goes on: the quiet hours are over"),
        (("resume", "quiet hours", 0.0, None, None), "goes on: quiet hours were lifted"),
        (("resume", "quiet hours", 0.0, 3600.0, None), "goes on: quiet hours were changed"),
        (("pause", "disk", 3.21, 5.0, None), "paused: room on the disk is at 3.2 GB (least 5.0 GB), until 5.5 GB"),
        (
            ("pause", "quiet power", 90.0, 60.0, None),
            "paused: power in quiet hours is at 90 W (limit 60 W), until they end",
        ),
        (("resume", "temperature", 75.0, 80.0, None), "goes on: the device is at 75 °C (limit 80 °C)"),
        (("dance", "moon", 1.0, None, None), "dance: moon is 1.00"),
    ],
)
def test_actions_in_words(action: tuple[str, str, float | None, float | None, float | None], said: str) -> None:
    assert describe(*action) == said


def test_an_end_that_is_reported_does_not_lie_before_the_true_one() -> None:
    seven = time.mktime((2026, 11, 27, 7, 0, 0, 0, 0, -1))
    late = Promise(
        cause="measured", finish=seven + 20, energy_kwh=None, promised_finish=seven, promised_energy_kwh=None,
        used_kwh=None, duty=1.0, quiet_duty=1.0, deadline=seven, energy_limit_kwh=None,
        nearest_deadline=seven + 300,
    )  # fmt: skip
    ((_, _, message, _),) = news(None, late)
    assert "it ends at 07:01 at the soonest." in message
    assert promised(seven, None, seven, None, None).endswith("07:00")
    assert promised(seven, 0.8, seven - 900, 0.7, 0.31).endswith("06:45, 0.70 kWh), 0.31 kWh so far")
    both = in_place(seven, seven + 6300, 0.5, 0.82)
    assert both == "08:45 and 0.82 kWh in place of 07:00 and 0.50 kWh, which cannot be met"
    assert stopped_by("temperature", 95.0, 80.0) == "the governor, as the device is at 95 °C (limit 80 °C)"
