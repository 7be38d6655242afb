"""Whole nights: a run on a model of a card, planned from what its first minutes tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import pytest

from core.config.clock import next_time, parse_span, parse_time
from core.errors import UserError
from core.governor.limits import Limits
from core.governor.night import Night, Promise, impossible
from core.governor.words import misses, promised

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
    idle_w: float = 20.0
    busy_w: float = 240.0
    leak_w: float = 80.0
    heat_duty: float = 1.0
    slower: float = 1.0
    now: float = EVENING
    joules: float = 0.0
    told: list[Promise] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.night = Night(self.limits, self.now, has_power=True)

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
            self.night.step_done(
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

    def cheapest(self, steps: int, seconds: float) -> float:
        """The least joules that steps can take in so much time, at a steady duty cycle."""
        work = steps * BUSY_SECONDS
        duties = [step / 1000 for step in range(100, 1001) if work / (step / 1000) <= seconds]
        return min(self.watts(duty) * work / duty for duty in duties)


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
    run = Overnight(Limits(deadline=parse_time("22:00")), steps=200)
    run.night = Night(run.limits, run.now, has_power=has_power)
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


def test_heat_that_takes_the_time_is_told_early() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=4000)
    run.run(200)
    assert not run.told[-1].misses_deadline
    run.heat_duty = 0.6
    run.run(150)
    last = run.told[-1]
    assert last.misses_deadline
    code, message, _ = misses(last)[0]
    assert code == "night_deadline"
    assert message.startswith("It cannot be done by 07:00: ")
    left = run.steps * BUSY_SECONDS / 0.6
    assert last.finish == pytest.approx(run.now + left, rel=0.02)


def test_energy_that_will_not_do_is_told_with_the_least_that_will() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00"), energy_kwh=0.5), steps=3000)
    run.run(100)
    last = run.told[-1]
    assert last.misses_energy
    (told,) = misses(last)
    assert told[0] == "night_energy"
    assert told[1].startswith("0.50 kWh will not do: it takes ")


def test_quiet_hours_are_counted_on() -> None:
    limits = Limits(deadline=parse_time("09:00"), quiet=parse_span("23:00-07:00"))
    run = Overnight(limits, steps=1500)  # 3 h 20 min of work; 2 h before, 2 h afterwards
    run.run()
    assert run.now <= next_time(parse_time("09:00"), EVENING)
    assert run.told[0].finish == pytest.approx(run.now, abs=600)
    assert run.told[0].quiet_duty == 0.0


def test_other_wishes_are_promised_anew() -> None:
    run = Overnight(Limits(deadline=parse_time("07:00")), steps=3000)
    run.run(100)
    changed = Limits(deadline=parse_time("05:30"))
    run.night.change(changed, run.now)
    run.limits = changed
    run.run()
    assert run.now <= next_time(parse_time("05:30"), EVENING)
    assert run.told[-1].promised_finish <= next_time(parse_time("05:30"), EVENING)


def test_a_deadline_within_pauses_is_impossible() -> None:
    late = datetime(2026, 11, 26, 23, 30).timestamp()
    limits = Limits(deadline=parse_time("06:00"), quiet=parse_span("23:00-07:00"))
    problem = impossible(limits, late)
    assert problem is not None
    assert "07:00" in problem[1]
    assert impossible(limits, EVENING) is None, "two hours are left before them"
    assert impossible(Limits(deadline=420, quiet=limits.quiet, quiet_power_w=100.0), late) is None


def test_a_promise_in_words() -> None:
    seven = next_time(parse_time("07:00"), datetime.now().timestamp())
    assert promised(seven, 0.8, seven, 0.8, 0.31).startswith("done by ")
    assert promised(seven, 0.8, seven - 900, 0.7, 0.31).endswith("06:45, 0.70 kWh), 0.31 kWh so far")
    assert "kWh" not in promised(seven, None, seven, None, None)


@pytest.mark.parametrize("text", ["24:00", "7", "07:60", "", "seven", "07:00-08:00"])
def test_no_time_of_day(text: str) -> None:
    with pytest.raises(UserError):
        parse_time(text)


@pytest.mark.parametrize("text", ["23:00", "23:00-25:00", "07:00-07:00", "-"])
def test_no_span_of_the_day(text: str) -> None:
    with pytest.raises(UserError):
        parse_span(text)
