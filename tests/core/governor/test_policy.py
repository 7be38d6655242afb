from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from core.config.clock import next_time, parse_span
from core.governor.limits import FLOOR, Limits
from core.governor.policy import HOPELESS_SECONDS, Action, Decision, Observation, Policy
from core.hardware.snapshot import Device
from tests.core.governor.card_model import CardModel

CARD = Device(index=0, kind="cuda", name="card", uuid="GPU-1")
#: Noon, and half past eleven at night.
NOON, NIGHT = (datetime(2026, 11, 26, hour, 30).timestamp() for hour in (12, 23))


class Governed:
    """A card whose work a policy governs, second by second."""

    def __init__(self, limits: Limits, card: CardModel | None = None, *, time: float = NOON, **device: Any) -> None:
        self.policy, self.card, self.time = Policy(limits), card or CardModel(), time
        self.device = replace(CARD, **device)
        self.seen: dict[str, Any] = {}
        self.told: list[Action] = []
        self.decision = Decision(1.0, None, None, None, ())

    def run(self, seconds: int, **seen: Any) -> Decision:
        """Let time go by; ``seen`` has the other readings from now on."""
        self.seen |= seen
        for _ in range(seconds):
            paused = self.decision.pause is not None
            self.card.run(1.0, 0.0 if paused else self.decision.duty)
            self.time += 1.0
            device = replace(self.device, temperature_c=self.card.reading())
            told: dict[str, Any] = {"at_work": not paused, "device": device, "joules": self.card.joules}
            observation = Observation(moment=self.card.moment, time=self.time, **told | self.seen)
            self.decision = self.policy.observe(observation)
            self.told += self.decision.actions
        return self.decision

    @property
    def actions(self) -> list[tuple[str, str]]:
        return [(action.action, action.cause) for action in self.told]


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    governed = Governed(Limits(), CardModel(resistance=0.4))
    assert governed.run(600, host_memory_percent=99.9, disk_free_gb=0.0) == Decision(1.0, None, None, None, ())
    assert governed.told == []


def test_slowing_is_reported_with_its_cause_and_seldom() -> None:
    governed = Governed(Limits(temperature_c=75.0), CardModel(resistance=0.2))
    governed.run(900)
    assert set(governed.actions) == {("slow", "temperature")}
    assert len(governed.told) <= 4
    last = governed.told[-1]
    assert last.limit == 75.0
    assert last.duty == pytest.approx(governed.card.duty_for(75.0), abs=0.12)
    governed.card.ambient -= 25
    governed.run(900)
    assert governed.actions[-1] == ("full", "temperature")
    assert governed.decision.duty == 1.0


def test_a_card_too_hot_at_the_smallest_duty_pauses_and_goes_on_when_cool() -> None:
    governed = Governed(Limits(temperature_c=60.0), CardModel(resistance=0.2))
    governed.run(300)
    governed.card.resistance = 1.0  # the fan has stopped
    governed.run(600)
    assert governed.actions[-1] == ("pause", "temperature")
    assert governed.decision.pause is not None
    governed.card.resistance = 0.2
    decision = governed.run(600)
    assert ("resume", "temperature") in governed.actions
    assert decision.pause is None
    resumed = next(action for action in governed.told if action.action == "resume")
    assert resumed.value is not None
    assert resumed.value <= 55.0, "only well below the limit"


def test_a_pause_for_heat_does_not_flutter() -> None:
    governed = Governed(Limits(temperature_c=60.0), CardModel(resistance=0.9, ambient=35.0, tau=60.0))
    governed.run(1200)
    pauses = [name for name, _ in governed.actions if name == "pause"]
    assert 1 <= len(pauses) <= 6


def test_a_card_that_does_not_cool_is_stopped_for() -> None:
    governed = Governed(Limits(temperature_c=50.0), CardModel(ambient=62.0))
    governed.run(60)
    assert governed.decision.pause is not None
    assert governed.decision.stop is None
    decision = governed.run(int(HOPELESS_SECONDS))
    assert decision.stop is not None
    assert (decision.stop.cause, decision.stop.limit) == ("temperature", 50.0)


def test_the_memory_of_the_card_has_a_limit_of_its_own() -> None:
    governed = Governed(Limits(memory_temperature_c=90.0), memory_temperature_c=96.0)
    governed.run(120)
    assert ("slow", "memory temperature") in governed.actions
    assert governed.decision.duty == pytest.approx(FLOOR)


def test_a_power_limit_of_the_card_comes_before_rests_where_it_is_permitted() -> None:
    limits = Limits(power_w=200.0)
    governed = Governed(limits, power_limit_min_w=100.0, power_limit_max_w=400.0)
    assert governed.run(1).power_limit_w == 200.0
    assert governed.told == [Action("power_limit", "power", 200.0, 200.0)]
    governed.card.busy_w = 195.0  # the card keeps to it
    assert governed.run(300).duty == 1.0
    refused = Governed(limits, power_limit_min_w=100.0, power_limit_max_w=400.0)
    refused.policy.can_limit_power = False
    decision = refused.run(300)
    assert decision.power_limit_w is None
    assert decision.duty == pytest.approx((200 - 25) / 325, abs=0.03)


def test_heat_takes_the_least_power_before_it_pauses() -> None:
    card = CardModel(resistance=0.6, ambient=30.0, tau=200.0)
    governed = Governed(Limits(temperature_c=60.0), card, power_limit_min_w=100.0, power_limit_max_w=400.0)
    while governed.decision.power_limit_w is None and card.moment < 600:
        governed.run(1)
    assert ("power_limit", "temperature") in governed.actions
    assert ("pause", "temperature") not in governed.actions


def test_quiet_hours_pause_and_end() -> None:
    governed = Governed(Limits(quiet=parse_span("23:45-00:15")), time=NIGHT)
    assert governed.run(60).pause is None
    paused = governed.run(15 * 60)
    assert paused.pause == Action("pause", "quiet hours", next_time(15, NIGHT))
    assert governed.run(30 * 60).pause is None
    assert governed.actions == [("pause", "quiet hours"), ("resume", "quiet hours")]
    assert governed.told[-1].value is None
    end = next_time(15, NIGHT)
    for limits, now in ((Limits(), None), (Limits(quiet=parse_span("00:05-00:15")), end)):
        changed = Governed(Limits(quiet=parse_span("23:45-00:15")), time=NIGHT)
        changed.run(16 * 60)
        changed.policy = changed.policy.with_limits(limits)
        assert changed.run(1).pause is None
        assert changed.told[-1] == Action("resume", "quiet hours", end, now), "the ends before and now"


def test_quiet_power_holds_in_quiet_hours_alone() -> None:
    governed = Governed(Limits(quiet=parse_span("23:45-00:15"), quiet_power_w=120.0), time=NIGHT)
    assert governed.run(14 * 60).duty == 1.0
    governed.run(5 * 60)
    before = governed.card.joules
    governed.run(10 * 60)
    assert (governed.card.joules - before) / 600 == pytest.approx(120.0, rel=0.05)
    assert governed.run(20 * 60).duty == 1.0


def test_the_least_work_may_be_too_loud() -> None:
    limits = Limits(quiet=parse_span("23:00-07:00"), quiet_power_w=40.0)
    governed = Governed(limits, CardModel(idle_w=60.0), time=NIGHT)
    governed.run(600)
    assert governed.actions[-1] == ("pause", "quiet power")


def test_a_full_disk_pauses_until_there_is_room() -> None:
    governed = Governed(Limits(disk_free_gb=20.0))
    assert governed.run(2, disk_free_gb=20.5).pause is None
    assert governed.run(2, disk_free_gb=19.0).pause == Action("pause", "disk", 19.0, 20.0)
    assert governed.run(2, disk_free_gb=21.0).pause is not None, "a little more is not enough"
    assert governed.run(2, disk_free_gb=23.0).pause is None
    assert governed.told[-1] == Action("resume", "disk", 23.0, 20.0)


def test_the_machines_memory_asks_for_a_checkpoint_and_then_for_a_stop() -> None:
    governed = Governed(Limits(host_memory_percent=90.0))
    governed.run(10, host_memory_percent=80.0)
    governed.run(10, host_memory_percent=95.0)
    assert governed.actions == [("checkpoint", "host memory")]
    governed.run(10, host_memory_percent=80.0)
    assert governed.run(30, host_memory_percent=95.0).stop is None
    assert [name for name, _ in governed.actions] == ["checkpoint", "checkpoint"]
    assert governed.run(60, host_memory_percent=95.0).stop is not None


def test_a_pause_of_the_users_changes_no_duty() -> None:
    governed = Governed(Limits(temperature_c=75.0), CardModel(resistance=0.2))
    duty = governed.run(600).duty
    governed.card.temperature = 40.0
    assert governed.run(120, at_work=False).duty == duty, "what cools in a pause says nothing of the work"


def test_another_limit_goes_on_from_the_present_duty() -> None:
    governed = Governed(Limits(temperature_c=75.0), CardModel(resistance=0.2))
    before = governed.run(600).duty
    governed.policy = governed.policy.with_limits(Limits(temperature_c=70.0))
    after = governed.run(1).duty
    assert after == pytest.approx(before, abs=0.1)
    governed.run(300)
    assert governed.card.temperature == pytest.approx(70.0, abs=2.0)


def test_the_plan_slows_and_says_so() -> None:
    governed = Governed(Limits(deadline=420))
    assert governed.run(3, plan_duty=0.6).duty == 0.6
    assert governed.told == [Action("slow", "plan", None, None, 0.6)]
