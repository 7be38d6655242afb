"""A step that takes long."""

from __future__ import annotations

from core.worker.process.step_watchdog import LONG_FACTOR, LONG_SECONDS, MEDIAN_FROM, StepPace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_step_is_long_once_and_against_the_median() -> None:
    clock = Clock()
    pace = StepPace(clock)
    pace.begin()
    clock.now += 1e6
    assert pace.look() is None, "there is no median yet"
    usual = 2 * LONG_SECONDS / LONG_FACTOR
    for seconds in [usual] * MEDIAN_FROM + [1e5]:
        pace.done(seconds)
    pace.begin()
    clock.now += LONG_FACTOR * usual - 1
    assert pace.look() is None
    clock.now += 2
    assert pace.look() == (LONG_FACTOR * usual + 1, usual)
    assert pace.look() is None
    pace.begin()
    clock.now += LONG_FACTOR * usual + 1
    assert pace.look() is not None
    pace.begin()
    pace.end()
    clock.now += 1e6
    assert pace.look() is None, "it waits for commands"


def test_a_short_step_is_never_long() -> None:
    clock = Clock()
    pace = StepPace(clock)
    for _ in range(MEDIAN_FROM):
        pace.done(0.01)
    pace.begin()
    clock.now += LONG_SECONDS - 1
    assert pace.look() is None
