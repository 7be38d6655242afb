from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from core.runs.control.protocol import Request
from core.worker.process.control import Command, Controls
from core.worker.process.governor import MOST_OWED, Throttle
from tests.cases import cases
from tests.waiting import wait_for


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


def test_what_a_request_cuts_short_is_owed() -> None:
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
    told: list[dict[str, Any]] = []
    controls = Controls()
    throttle = Throttle(controls, 0.1)
    throttle.rest()
    time.sleep(0.02)  # the work
    throttle._owed = 600.0  # of steps before
    resting = threading.Thread(target=throttle.rest)
    resting.start()
    controls.put(Command(Request("1", "pause", {}), told.append))
    wait_for(lambda: not resting.is_alive(), 10, "the rest to end")
    assert controls.waiting_count == 1, "it is carried out at the control point"
    controls.request_stop("SIGTERM")
    throttle._owed = 600.0
    resting = threading.Thread(target=throttle.rest)
    resting.start()
    wait_for(lambda: not resting.is_alive(), 10, "the rest to end for a signal")
