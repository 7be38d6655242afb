"""Whole nights: a run on a model of a card, planned from its first minutes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from core.config.clock import next_time, parse_span, parse_time
from core.errors import UserError
from core.governor.limits import Limits
from core.governor.night import Course, Night, unmet, working_span
from core.governor.promise import Promise
from core.governor.words import news
from tests.core.runs.helpers import there

EVENING = datetime(2026, 11, 26, 21, 0).timestamp()
#: Of one step.
TOKENS, BUSY_SECONDS = 4000, 8.0


@dataclass
class Overnight:
    """A run whose steps take their time, on a card that leaks more the more it works.

    Args:
        limits: The wishes.
        steps: To do.
    """

    limits: Limits
    steps: int
    has_power: bool = True
    idle_w: float = 20.0
    busy_w: float = 240.0
    leak_w: float = 80.0
    heat_duty: float = 1.0
    slower: float = 1.0
    now: float = EVENING
    joules: float = 0.0
    told: list[Promise] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.course = Course()
        self.night = Night(self.limits, self.now, self.course, has_power=self.has_power)

    def watts(self, duty: float) -> float:
        return self.idle_w + (self.busy_w - self.idle_w) * duty + self.leak_w * duty * duty

    def run(self, steps: int | None = None) -> None:
        """Do steps; all that are left by default."""
        for _ in range(self.steps if steps is None else steps):
            is_quiet = self.limits.quiet is not None and self.limits.quiet.contains(self.now)
            if is_quiet and self.limits.quiet_power_w is None:
                self._wait(self.limits.quiet.next_edge(self.now) - self.now if self.limits.quiet else 0.0)
            duty = min(self.night.duty(self.now), self.heat_duty)
            seconds = BUSY_SECONDS * self.slower / duty
            used = self.watts(duty) * seconds
            self.joules, self.now, self.steps = self.joules + used, self.now + seconds, self.steps - 1
            self.course.step_done(
                tokens=TOKENS, seconds=seconds, duty=duty, joules=used, between=0.0, steps_left=self.steps
            )
            self._look(seconds)

    def _wait(self, seconds: float) -> None:
        self.now += seconds
        self.joules += self.idle_w * seconds
        self._look(seconds)

    def _look(self, seconds: float) -> None:
        promise = self.night.look(self.now, seconds, self.heat_duty, self.joules)
        if promise is not None:
            self.told.append(promise)

    def news(self) -> list[tuple[str, str, str, str]]:
        """All notices so far."""
        pairs = zip([None, *self.told], self.told, strict=False)
        return [notice for before, promise in pairs for notice in news(before, promise)]

    def cheapest(self, steps: int, seconds: float) -> float:
        """The least joules that steps can take in so much time, at a steady duty cycle."""
        work = steps * BUSY_SECONDS
        duties = [step / 1000 for step in range(100, 1001) if work / (step / 1000) <= seconds]
        return min(self.watts(duty) * work / duty for duty in duties)


def clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%H:%M")


def test_done_by_seven_and_near_the_least_energy() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=3000)
    deadline, best = next_time(parse_time("07:00"), EVENING), run.cheapest(3000, 10 * 3600.0)
    assert run.cheapest(3000, 3000 * BUSY_SECONDS) > 1.05 * best, "the plan has something to win"
    run.run()
    assert run.now <= deadline
    assert run.joules == pytest.approx(best, rel=0.05)
    first = run.told[0]
    assert first.cause == "measured"
    assert first.finish == pytest.approx(run.now, abs=0.02 * (deadline - EVENING)), "what was promised came true"
    assert first.energy_kwh == pytest.approx(run.joules / 3.6e6, rel=0.05)


@pytest.mark.parametrize("has_power", [True, False])
def test_after_the_last_step_the_pace_stays(has_power: bool) -> None:
    run = Overnight(Limits(deadline=parse_time("22:00")), steps=200, has_power=has_power)
    run.run(199)
    duty = run.night.duty(run.now)
    assert duty > 0.3
    run.run()
    told = len(run.told)
    for _ in range(3):  # minutes of the last evaluation, with nothing left to train
        run._wait(60.0)
        assert run.night.duty(run.now) == pytest.approx(duty, abs=0.1)
    assert len(run.told) == told


def test_a_run_that_ends_while_its_pace_is_measured_is_not_held_back() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=8)
    run.run(7)
    assert run.night.duty(run.now) < 1.0, "a trial"
    run.run()
    assert run.night.duty(run.now) == 1.0


def test_a_disturbance_is_planned_around() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=3000)
    run.run(1000)
    run.slower = 1.3  # something else wants the card
    run.run()
    assert run.now <= next_time(parse_time("07:00"), EVENING)
    assert any(promise.duty > run.told[0].duty + 0.05 for promise in run.told), "it works harder now"
    assert {promise.promised_finish for promise in run.told} == {run.told[0].finish}, "the promise stays as it was"


def test_heat_that_takes_the_time_is_reported_early() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=4000)
    run.run(200)
    assert run.told[-1].nearest_deadline is None
    run.heat_duty = 0.6
    run.run(150)
    last = run.told[-1]
    ((level, code, message, _),) = run.news()
    assert (level, code) == ("warning", "night_deadline")
    assert message.startswith("07:00 cannot be met: it ends at ")
    assert last.nearest_deadline is not None
    assert message.endswith(" takes its place.")
    assert last.finish < last.nearest_deadline < last.finish + 0.05 * (last.finish - run.now) + 300
    left = run.steps * BUSY_SECONDS / 0.6
    assert last.finish == pytest.approx(run.now + left, rel=0.02)


def test_energy_that_will_not_do_is_reported_with_the_least_that_will() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00"), energy_kwh=0.5), steps=3000)
    run.run(100)
    (given_up,) = [promise for promise in run.told if promise.cause == "given_up"]
    assert given_up is run.told[0]
    assert given_up.nearest_deadline is None
    assert given_up.energy_kwh is not None
    assert given_up.nearest_energy_kwh is not None
    assert given_up.energy_kwh < given_up.nearest_energy_kwh < 1.05 * given_up.energy_kwh
    ((_, code, message, _),) = run.news()
    assert code == "night_energy"
    assert message.startswith("0.50 kWh cannot be met: it takes ")
    assert message.endswith(f"{given_up.nearest_energy_kwh:.2f} kWh takes its place.")


def test_a_deadline_is_taken_up_again_when_what_was_in_the_way_is_gone() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=4000)
    run.run(200)
    run.slower = 1.4
    run.run(150)
    run.slower = 1.0
    run.run()
    assert [notice[1] for notice in run.news()] == ["night_deadline", "night_deadline_again"]
    assert [promise.cause for promise in run.told if promise.cause.endswith("_up")] == ["given_up", "taken_up"]
    assert run.told[-1].nearest_deadline is None
    assert run.now <= next_time(parse_time("07:00"), EVENING)


def test_a_wish_at_the_edge_does_not_swing() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=4480)
    for place in range(100):
        run.slower = 1.02 if place % 2 else 0.99
        run.run(20)
    assert len(run.news()) <= 1
    assert run.news()[0][1] == "night_deadline"


def test_where_the_deadline_is_given_up_the_energy_is_kept() -> None:
    limits = Limits(deadline=parse_time("23:00"), energy_kwh=2.06)
    run = Overnight(limits, steps=3000)  # 6 h 40 min of work, with 2.0 kWh to 2.13 kWh
    run.run()
    assert {notice[1] for notice in run.news()} == {"night_deadline"}
    assert "at the soonest with 2.06 kWh" in run.news()[0][2]
    assert run.joules <= 2.06 * 3.6e6
    assert run.now - EVENING > 1.02 * 3000 * BUSY_SECONDS, "it takes its time for that"


def test_what_takes_the_place_moves_when_that_is_missed_as_well() -> None:
    run = Overnight(Limits(deadline=parse_time("23:00")), steps=3000)
    run.run(100)
    first = there(run.told[-1].nearest_deadline)
    run.slower = 1.5
    run.run(500)
    assert there(run.told[-1].nearest_deadline) > first
    assert len(run.news()) == 1, "the wish is given up once"
    assert all(promise.finish <= promise.nearest_deadline for promise in run.told if promise.nearest_deadline)


@pytest.mark.parametrize("plans", [True, False])
def test_a_new_deadline_that_cannot_be_met_is_refused_with_the_nearest_that_can(plans: bool) -> None:
    run = Overnight(Limits(deadline=parse_time("12:00")) if plans else Limits(), steps=3000)
    if not plans:
        run.course = Course()  # that nobody plans by
    assert not list(unmet(Limits(deadline=parse_time("22:00")), run.course, run.now, 0.0)), "nothing is known yet"
    run.run(60)
    left = run.steps * BUSY_SECONDS
    (refused,) = unmet(Limits(deadline=parse_time("01:00")), run.course, run.now, run.joules)
    assert refused.option == "night.deadline"
    end = clock(60 * math.ceil((run.now + left) / 60))
    assert refused.sentence == f"01:00 cannot be met: at full speed it ends at {end}."
    nearest = there(re.fullmatch(r"Set (\d\d:\d\d) or later\.", refused.hint))
    offered = parse_time(nearest[1])
    assert 0 < next_time(offered, run.now) - (run.now + left) < 0.03 * left + 300
    assert not list(unmet(Limits(deadline=offered), run.course, run.now, run.joules))
    run.steps = 20_000
    run.run(1)
    (refused,) = unmet(Limits(deadline=parse_time("07:00")), run.course, run.now, run.joules)
    assert refused.hint == "No time within a day can be met: take the deadline away."


def test_a_new_energy_that_will_not_do_is_refused_with_the_least_that_will() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=3000)
    run.run(60)
    (refused,) = unmet(Limits(energy_kwh=0.5), run.course, run.now, run.joules)
    assert refused.option == "night.energy_kwh"
    assert refused.sentence.startswith("0.50 kWh cannot be met: it takes 1.")
    offered = float(refused.hint.removeprefix("Set ").removesuffix(" kWh or more."))
    assert not list(unmet(Limits(energy_kwh=offered), run.course, run.now, run.joules))
    # Speed alone refuses none but one that is used already.
    run.course = Course()
    run.run(60)
    assert not list(unmet(Limits(energy_kwh=0.5), run.course, run.now, run.joules))
    (refused,) = unmet(Limits(energy_kwh=0.01), run.course, run.now, run.joules)
    assert refused.sentence.endswith(" already.")


def test_quiet_hours_are_counted_on() -> None:
    limits = Limits(deadline=parse_time("09:00"), quiet=parse_span("23:00-07:00"))
    run = Overnight(limits, steps=1500)  # 3 h 20 min of work; 2 h before, 2 h afterwards
    run.run()
    assert run.now <= next_time(parse_time("09:00"), EVENING)
    assert run.told[0].finish == pytest.approx(run.now, abs=600)
    assert run.told[0].quiet_duty == 0.0


def test_a_job_waits_through_quiet_hours() -> None:
    midnight, hour = datetime(2026, 11, 24).timestamp(), 3600.0
    quiet, quieter = Limits(quiet=parse_span("22:00-07:00")), Limits(quiet=parse_span("22:00-07:00"), quiet_power_w=99)
    for limits, begin, seconds, expected in (
        (Limits(), 6, 2, (6, 8)),
        (quiet, 6, 2, (7, 9)),
        (quiet, 20, 2, (20, 22)),
        (quiet, 20, 3, (20, 32)),
        (quiet, 20, 18, (20, 56)),
        (quieter, 6, 2, (6, 8)),
    ):
        found = working_span(limits, midnight + begin * hour, seconds * hour)
        assert found == tuple(midnight + there * hour for there in expected), (limits, begin, seconds)
    assert working_span(quiet, midnight, 1000 * hour)[1] is None


def test_other_wishes_are_promised_anew() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=3000)
    run.run(100)
    changed = Limits(deadline=parse_time("05:30"))
    run.night.change(changed, run.now)
    run.limits = changed
    run.run()
    assert run.now <= next_time(parse_time("05:30"), EVENING)
    assert run.told[-1].promised_finish <= next_time(parse_time("05:30"), EVENING)


def test_no_time_and_no_span_of_the_day() -> None:
    for read, texts in (
        (parse_time, ("24:00", "7", "07:60", "", "seven", "07:00-08:00")),
        (parse_span, ("23:00", "23:00-25:00", "07:00-07:00", "-")),
    ):
        for text in texts:
            with pytest.raises(UserError):
                read(text)
