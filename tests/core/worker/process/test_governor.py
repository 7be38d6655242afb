"""Throttle by a duty cycle; governor's thread on scripted meters, and on the real binding with a scripted driver."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.hardware.sampler import Sampler
from core.hardware.snapshot import Device
from core.runs.control.protocol import Request
from core.runs.record.events import Event, GovernorEvent, NightEvent
from core.worker.process.control import Command, Controls
from core.worker.process.governor import MOST_OWED, Governor, Throttle
from tests.cases import cases
from tests.core.hardware.conftest import Ask, ask_driver, fake_driver
from tests.waiting import wait_for

__all__ = ["ask_driver", "fake_driver"]


class Clock:
    """A clock that goes on when there is work, or rest."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Patient(Controls):
    """Controls whose rests take no time, until something is asked for."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.asked_at = clock, float("inf")

    def rest(self, seconds: float) -> bool:
        self.clock.now = min(self.clock.now + seconds, max(self.asked_at, self.clock.now))
        return self.clock.now < self.asked_at


@cases("duty", [0.1, 0.5, 0.8, 0.95])
def test_the_share_that_is_worked_is_the_duty_cycle(duty: float) -> None:
    clock = Clock()
    throttle = Throttle(Patient(clock), duty, clock=clock)
    throttle.rest()
    began, worked = clock.now, 0.0
    for seconds in (0.3, 1.0, 0.05) * 5:
        clock.now += seconds
        worked += seconds
        throttle.rest()
    assert worked / (clock.now - began) == pytest.approx(duty, rel=0.01)
    assert throttle.rested_seconds == pytest.approx(clock.now - began - worked)


def test_full_duty_neither_rests_nor_waits_for_the_device() -> None:
    clock, waits = Clock(), list[float]()
    throttle = Throttle(Patient(clock), synchronize=lambda: waits.append(clock.now), clock=clock)
    for _ in range(3):
        clock.now += 1.0
        throttle.rest()
    assert (clock.now, throttle.rested_seconds, waits) == (3.0, 0.0, [])
    throttle.duty = 0.5
    throttle.rest()
    assert (clock.now, waits) == (3.0, [3.0]), "what was worked before is not made up for"


def test_rest_cut_short_by_a_request_is_owed() -> None:
    clock = Clock()
    controls = Patient(clock)
    throttle = Throttle(controls, 0.5, clock=clock)
    throttle.rest()
    clock.now = 10.0
    controls.asked_at = 12.0
    throttle.rest()
    assert clock.now == pytest.approx(12.0, abs=0.3)
    clock.now += 1.0
    controls.asked_at = float("inf")
    throttle.rest()
    assert throttle.rested_seconds == pytest.approx(11.0, abs=0.01)
    clock.now += 10 * MOST_OWED
    before = clock.now
    throttle.rest()
    assert clock.now - before == pytest.approx(MOST_OWED, abs=0.01)
    clock.now += 5.0
    throttle.paused()
    before = clock.now
    throttle.rest()
    assert clock.now == before, "a pause was rest enough"


def test_a_request_ends_a_rest_at_once() -> None:
    controls = Controls()
    throttle = Throttle(controls, 0.1)
    throttle.rest()
    time.sleep(0.02)  # the work
    pause = Command(Request("1", "pause"), print)
    for ask in (partial(controls.put, pause), partial(controls.request_stop, "SIGTERM")):
        throttle._owed = 600.0  # of steps before
        resting = threading.Thread(target=throttle.rest)
        resting.start()
        ask()
        resting.join(PATIENCE)
        assert not resting.is_alive()
    assert controls.waiting_count == 1, "it is carried out at the control point"


CARD = Device(index=0, kind="cuda", name="RTX 4090", temperature_c=60.0, power_w=300.0, uuid="GPU-1")
PATIENCE = 60.0


class Meters(Sampler):
    """Meters set by a test."""

    def __init__(self, device: Device) -> None:
        self.device, self.watt_hours = device, 0.0 if device.power_w is not None else None
        self.seconds_old = 0.0

    @property
    def energy_wh(self) -> float | None:
        return self.watt_hours

    def refresh(self, timeout: float) -> list[Device]:
        return [self.device]

    def age(self) -> float | None:
        return self.seconds_old


class Lever:
    """Sets power limits, or refuses to."""

    def __init__(self, *, permitted: bool = True) -> None:
        self.permitted, self.calls = permitted, list[tuple[str, float | None]]()

    def set_power_limit(self, uuid: str, watts: float) -> None:
        if not self.permitted:
            raise UserError("This user may not set the power limit.", "Run: sudo nvidia-smi -i 0 -pl 200")
        self.calls.append((uuid, watts))

    def restore(self, uuid: str) -> None:
        self.calls.append((uuid, None))


class Bench:
    """A governor with all that it acts on."""

    def __init__(self, directory: Path, device: Device = CARD, lever: Lever | None = None, **sections: Any) -> None:
        self.meters, self.controls = Meters(device), Controls()
        self.throttle = Throttle(self.controls)
        self.events: list[Event] = []
        self.notices: list[tuple[str, str]] = []
        self.now = datetime(2026, 11, 26, 12, 0).timestamp()
        self.paused = False
        self._moment = 0.0
        config = Config.model_validate({"data": {"train": "rows.jsonl"}, **sections})
        self.governor = Governor(
            config,
            meters=self.meters,
            controls=self.controls,
            throttle=self.throttle,
            tell=self.events.append,
            notice=lambda _, code, message, hint: self.notices.append((code, f"{message} {hint}")),
            directory=directory,
            is_paused=lambda: self.paused,
            lever=lever,
            interval=0.002,
            clock=self._clock,
            wall=lambda: self.now,
        )

    def _clock(self) -> float:
        """A second between two looks."""
        self._moment += 0.5
        return self._moment

    def governing(self, **overrides: Any) -> AbstractContextManager[None]:
        return self.governor.governing(overrides)

    def step_done(self, steps_left: int) -> None:
        """A step of a minute at full speed."""
        self.governor.step_done(tokens=1000, seconds=60.0, rested=0.0, paused=0.0, steps_left=steps_left)
        wait_for(lambda: not self.governor._steps, PATIENCE, "the step to be taken in")

    def wait_for(self, action: str) -> GovernorEvent:
        def told() -> GovernorEvent | None:
            return next((e for e in self.events if isinstance(e, GovernorEvent) and e.action == action), None)

        found = wait_for(told, PATIENCE, f"the governor to {action}")
        assert found is not None
        return found


def test_a_run_without_limits_has_no_thread_and_knows_its_pace(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.governing():
        for left in (602, 601, 600):
            bench.step_done(left)
        assert bench.governor._thread is None
        assert bench.throttle.duty == 1.0
        with pytest.raises(UserError, match="Set 22:15 or later"):
            bench.governor.check({"night.deadline": "19:00"})


HOT = replace(CARD, temperature_c=95.0)


def test_heat_slows_and_then_pauses_until_it_is_cool(tmp_path: Path) -> None:
    bench = Bench(tmp_path, HOT, hardware={"temperature_limit_c": 80.0})
    with bench.governing():
        slow = bench.wait_for("slow")
        assert (slow.cause, slow.limit) == ("temperature", 80.0)
        assert bench.throttle.duty < 1.0
        bench.wait_for("pause")
        wait_for(lambda: bench.governor.pause, PATIENCE, "the pause")
        bench.meters.device = replace(CARD, temperature_c=70.0)
        bench.wait_for("resume")
        wait_for(lambda: bench.governor.pause is None, PATIENCE, "the pause to end")


def test_heat_that_stays_stops_the_run_with_the_reason(tmp_path: Path) -> None:
    bench = Bench(tmp_path, HOT, hardware={"temperature_limit_c": 80.0})
    with bench.governing():
        wait_for(lambda: bench.controls.stop_sender, PATIENCE, "the stop")
        assert bench.controls.stop_sender == "the governor, as the device is at 95 °C (limit 80 °C)"
    assert sum(isinstance(event, GovernorEvent) and event.action == "stop" for event in bench.events) == 1


def test_overrides_from_before_a_resume_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.worker.process.governor.host_memory", lambda: (95, 100))
    bench = Bench(tmp_path)
    with bench.governing(**{"hardware.host_memory_limit_percent": 90.0}):
        bench.wait_for("checkpoint")
        wait_for(bench.governor.take_checkpoint, PATIENCE, "the checkpoint to be wanted")
        wait_for(lambda: bench.controls.stop_sender, PATIENCE, "the stop")


@cases("permitted", [True, False])
def test_the_cards_power_limit_is_set_and_put_back_or_rests_limit_the_power(tmp_path: Path, permitted: bool) -> None:
    device = replace(CARD, power_limit_min_w=100.0, power_limit_max_w=450.0)
    lever = Lever(permitted=permitted)
    bench = Bench(tmp_path, device, lever, hardware={"power_limit_w": 200.0})
    with bench.governing():
        if permitted:
            assert bench.wait_for("power_limit").value == 200.0
        else:
            wait_for(lambda: bench.notices, PATIENCE, "the notice")
    # The first restore is for the limit left by a killed run.
    set_and_put_back = [("GPU-1", 200.0), ("GPU-1", None)] if permitted else []
    assert lever.calls == [("GPU-1", None), *set_and_put_back]
    if not permitted:
        assert bench.notices[0][0] == "governor_power_limit"
        assert "sudo nvidia-smi -i 0 -pl 200" in bench.notices[0][1]
        assert not any(isinstance(event, GovernorEvent) and event.action == "power_limit" for event in bench.events)


def test_a_hanging_driver_is_reported_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hardware={"temperature_limit_c": 80.0})
    bench.meters.seconds_old = 45.0
    with bench.governing():
        wait_for(lambda: bench.notices, PATIENCE, "the notice")
    assert [code for code, _ in bench.notices] == ["governor_blind"]


def test_a_night_is_promised_after_the_first_steps(tmp_path: Path) -> None:
    bench = Bench(tmp_path, night={"deadline": "12:30", "energy_kwh": 0.1})
    with bench.governing():
        for left in range(40, 0, -1):
            bench.meters.watt_hours = (bench.meters.watt_hours or 0.0) + 60 * 300 / 3600
            bench.now += 60
            before = bench.governor._night
            bench.step_done(left)
            if any(isinstance(event, NightEvent) for event in bench.events):
                break
            assert before is None or before is bench.governor._night
        wait_for(lambda: len(bench.notices) == 2, PATIENCE, "both misses to be told")
    assert {code for code, _ in bench.notices} == {"night_deadline", "night_energy"}
    (night, *_) = [event for event in bench.events if isinstance(event, NightEvent)]
    assert night.misses_deadline
    assert night.misses_energy
    assert night.promised_finish == night.finish


def test_a_new_wish_is_refused_where_the_pace_of_the_run_is_known(tmp_path: Path) -> None:
    bench = Bench(tmp_path, night={"energy_kwh": 50.0})
    governor = bench.governor
    with bench.governing():
        governor.check({"night.deadline": "12:20"})  # nothing is known of its pace
        for left in (602, 601, 600):  # ten hours of work
            bench.step_done(left)
        with pytest.raises(UserError, match=r"^19:00 cannot be met: at full speed it ends at 22:00\.") as error:
            governor.check({"night.deadline": "19:00"})
        assert error.value.hint == "Set 22:15 or later."
        governor.change(governor.check({"night.deadline": "22:15"}))
        with pytest.raises(UserError, match="22:15 cannot be met"):
            governor.check({"night.deadline": "22:15", "night.quiet_hours": "20:00-21:00"})
        governor.check({"night.deadline": "22:15", "hardware.power_limit_w": 100.0})


BLIND = Device(index=0, kind="cpu", name="Some CPU")


@cases("option", ["hardware.temperature_limit_c", "night.energy_kwh"])
def test_limits_that_cannot_be_kept_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"Some CPU does not report .* so {option} cannot be kept"):
        Bench(tmp_path, BLIND).governor.check({option: 80.0})


#: A run of sleeps on a card that warms by it, in a fortieth of the time: the sampler, the binding and the driver are
#: real, the card is not.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
from core.config.schema import Config
from core.hardware.sampler import Sampler
from core.worker.process.control import Controls
from core.worker.process.governor import Governor, Throttle
from tests.core.governor.card_model import CardModel

SPEED, LIMIT = 40.0, 75.0
readings = Path(os.environ["FAKE_NVML_FILE"])
card = CardModel(resistance=0.2, tau=60.0)

def show():
    new = readings.with_suffix(".new")
    new.write_text(f"temperature={card.reading():.0f}\\npower={card.power * 1000:.0f}\\n")
    os.replace(new, readings)

show()
sampler, controls, events = Sampler(1.0), Controls(), []
sampler.watch("GPU-00000010-1111-2222-3333-444455556666")
throttle = Throttle(controls)
governor = Governor(
    Config.model_validate({"data": {"train": "x"}, "hardware": {"temperature_limit_c": LIMIT}}),
    meters=sampler, controls=controls, throttle=throttle, tell=events.append, notice=print,
    directory=Path("."), is_paused=lambda: False, interval=1.0 / SPEED, clock=lambda: time.monotonic() * SPEED,
)

def train(seconds):
    warm, worked, begin = [], 0.0, card.moment
    while card.moment < begin + seconds:
        began = time.monotonic()
        time.sleep(0.01)
        passed = (time.monotonic() - began) * SPEED
        card.run(passed, 1.0)
        worked += passed
        began = time.monotonic()
        throttle.rest()
        card.run((time.monotonic() - began) * SPEED, 0.0)
        show()
        warm.append(card.temperature)
    # Of a busy machine the pauses are longer than they are meant to be, and the governor's figure is higher.
    return warm, worked / (card.moment - begin)

with governor.governing({}):
    before, _ = train(330)
    card.ambient += 8.0
    train(120)
    after, duty = train(130)
print(json.dumps({
    "before": before[-len(before) // 6:], "after": after, "duty": duty,
    "wanted": card.duty_for(LIMIT), "actions": [event.action for event in events],
}))
"""


@pytest.mark.long
def test_a_real_sampler_and_driver_hold_the_temperature(ask_driver: Ask, tmp_path: Path) -> None:
    told = ask_driver(PROGRAM, "", tmp_path / "readings")
    for part in ("before", "after"):
        mean = sum(told[part]) / len(told[part])
        assert mean == pytest.approx(75.0, abs=2.0), part
    assert told["duty"] == pytest.approx(told["wanted"], abs=0.1)
    assert told["actions"][0] == "slow"
