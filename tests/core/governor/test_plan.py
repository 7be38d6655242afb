from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from core.governor.limits import FLOOR
from core.governor.plan import Curve, Plan, Point, Span, Wishes, least_energy, plan, soonest
from tests.examples import examples

HOUR = 3600.0
#: The plan's duty cycles are so far apart.
STEP = 0.004


def curve(idle: float = 40.0, busy: float = 300.0, bend: float = 0.0, speed: float = 1000.0) -> Curve:
    """A card whose power bends: a warmer chip leaks more."""
    return Curve(
        [Point(duty, speed * duty, idle + (busy - idle) * duty + bend * duty * duty) for duty in (0.45, 0.7, 1.0)]
    )


def always(**wishes: Any) -> Wishes:
    return Wishes([Span(0.0, math.inf, is_quiet=False)], **wishes)


def test_what_cannot_be_is_reported_with_the_nearest() -> None:
    late = plan(curve(), 1000 * HOUR, always(deadline=0.5 * HOUR))
    assert late.misses_deadline
    assert late.finish == pytest.approx(HOUR), "the soonest"
    costly = plan(curve(), 1000 * HOUR, always(deadline=2 * HOUR, joules=100 * HOUR))
    assert (costly.misses_deadline, costly.misses_energy) == (False, True)
    assert costly.joules == pytest.approx(300 * HOUR), "the least"


def test_quiet_hours_are_slow_or_none() -> None:
    spans = [Span(0.0, HOUR, is_quiet=False), Span(HOUR, 3 * HOUR, is_quiet=True), Span(3 * HOUR, 99 * HOUR, False)]
    parked = plan(curve(), 2000 * HOUR, Wishes(spans, deadline=5 * HOUR))
    assert parked.quiet_duty == 0.0
    assert parked.finish == pytest.approx(4 * HOUR)
    assert parked.joules == pytest.approx((600 + 2 * 40) * HOUR)
    quiet = plan(curve(), 2000 * HOUR, Wishes(spans, deadline=5 * HOUR, quiet_power_w=170.0))
    assert quiet.quiet_duty == pytest.approx(0.5)
    assert quiet.finish == pytest.approx(3 * HOUR)


def test_heat_bounds_the_plan() -> None:
    found = plan(curve(), 1000 * HOUR, always(deadline=0.9 * HOUR, most_duty=0.6))
    assert found.duty == 0.6
    assert found.misses_deadline


def test_without_a_meter_it_is_done_soonest() -> None:
    blind = Curve([Point(1.0, 1000.0, None)])
    found = plan(blind, 1000 * HOUR, always(deadline=3 * HOUR))
    assert (found.duty, found.joules, found.keeps) == (1.0, 0.0, True)


@example(idle=5.0, busy=120.0, bend=38.0, hours=1.0, slack=5.3)
@given(
    idle=st.floats(5, 80),
    busy=st.floats(120, 400),
    bend=st.floats(0, 150),
    hours=st.floats(0.2, 5),
    slack=st.floats(1.1, 6),
)
def test_no_other_duty_cycle_is_cheaper(idle: float, busy: float, bend: float, hours: float, slack: float) -> None:
    """Replace a duty cycle off the plan's grid by the next one on it."""
    found_curve = curve(idle, busy, bend)
    tokens, deadline = 1000 * hours * HOUR, slack * hours * HOUR
    found = plan(found_curve, tokens, always(deadline=deadline))
    assert found.finish <= deadline

    def joules(duty: float) -> float:
        return found_curve.watts(duty) * tokens / found_curve.tokens_per_second(duty)

    for step in range(10, 101):
        duty = step / 100
        if tokens / found_curve.tokens_per_second(duty) <= deadline:
            most = max(joules(duty), joules(min(duty + STEP, 1.0)))
            assert found.joules <= most * (1 + 1e-9)


@given(st.floats(0.1, 1), st.floats(10, 400))
def test_average_power_is_kept_by_the_plan(hours: float, watts: float) -> None:
    assume(curve().watts(FLOOR) < watts)
    found: Plan = plan(curve(), 1000 * hours * HOUR, always(power_w=watts))
    assert curve().watts(found.duty) <= watts + 1e-6


@given(joules=st.floats(1e5, 1e7), bend=st.floats(0.0, 200.0), late=st.booleans())
@settings(max_examples=examples(40))
def test_in_a_hurry_the_energy_is_kept_where_it_can_be(joules: float, bend: float, late: bool) -> None:
    card = curve(bend=bend)
    wishes = always(joules=joules, **({"deadline": 10.0} if late else {"is_hurried": True}))
    found, first, least = plan(card, 2e7, wishes), soonest(card, 2e7, wishes), least_energy(card, 2e7, wishes)
    assume(not 0.98 * joules < least.joules <= joules)  # the grid that is walked first is coarse
    assert found.misses_deadline == late
    if least.joules <= joules:
        assert not found.misses_energy
        assert first.finish <= found.finish + 1e-6
    else:
        assert found.finish == pytest.approx(first.finish, rel=0.02)
