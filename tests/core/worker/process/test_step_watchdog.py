"""A step that takes long."""

from __future__ import annotations

from core.worker.process.step_watchdog import LONG_FACTOR, LONG_SECONDS, MEDIAN_FROM, StepWatchdog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_step_is_long_once_and_against_the_median() -> None:
    clock = Clock()
    watchdog = StepWatchdog(clock)
    watchdog.begin()
    clock.now += 1e6
    assert watchdog.look() is None, "there is no median yet"
    usual = 2 * LONG_SECONDS / LONG_FACTOR
    for seconds in [usual] * MEDIAN_FROM + [1e5]:
        watchdog.done(seconds)
    watchdog.begin()
    clock.now += LONG_FACTOR * usual - 1
    assert watchdog.look() is None
    clock.now += 2
    assert watchdog.look() == (LONG_FACTOR * usual + 1, usual)
    assert watchdog.look() is None
    watchdog.begin()
    clock.now += LONG_FACTOR * usual + 1
    assert watchdog.look() is not None
    watchdog.begin()
    watchdog.end()
    clock.now += 1e6
    assert watchdog.look() is None, "it waits for commands"


def test_a_short_step_is_never_long() -> None:
    clock = Clock()
    watchdog = StepWatchdog(clock)
    for _ in range(MEDIAN_FROM):
        watchdog.done(0.01)
    watchdog.begin()
    clock.now += LONG_SECONDS - 1
    assert watchdog.look() is None
