from __future__ import annotations

import json

from core.worker.progress.state import Limits


class Clock:
    """Time and energy as a test says."""

    now = 100.0
    watt_hours: float | None = 0.0

    def limits(self, hours: float | None = None, watt_hours: float | None = None) -> Limits:
        return Limits(hours, watt_hours, lambda: self.watt_hours, lambda: self.now)


def test_without_limits_nothing_is_reached_or_written() -> None:
    clock = Clock()
    limits = clock.limits()
    clock.now, clock.watt_hours = 1e9, 1e9
    assert limits.reached() is None
    assert not limits.is_set
    assert not limits.is_blind


def test_hours_of_work_end_a_run_and_pauses_do_not_count() -> None:
    clock = Clock()
    limits = clock.limits(hours=1.5)
    clock.now += 5399
    assert limits.reached() is None
    limits.pause(100)
    clock.now += 100
    assert limits.reached() is None
    clock.now += 1
    assert limits.reached() == "train.max_hours = 1.5 is reached"
    assert limits.reached(pausing=2) is None, "a pause that is not over yet"


def test_energy_ends_a_run_where_it_is_known() -> None:
    clock = Clock()
    limits = clock.limits(watt_hours=300)
    clock.watt_hours = 299
    assert limits.reached() is None
    clock.watt_hours = 300
    assert limits.reached() == "train.max_energy_wh = 300 is reached"
    clock.watt_hours = None
    assert limits.reached() is None
    assert limits.is_blind


def test_what_was_spent_before_a_stop_counts_after_it() -> None:
    clock = Clock()
    first = clock.limits(hours=1, watt_hours=100)
    clock.now += 3000
    clock.watt_hours = 60.0
    facts = json.loads(json.dumps(first.facts()))
    clock.now += 86400
    clock.watt_hours = 0.0
    second = clock.limits(hours=1, watt_hours=100)
    second.resume(facts)
    assert (second.seconds, second.watt_hours) == (3000, 60)
    clock.watt_hours = 40
    assert second.reached() == "train.max_energy_wh = 100 is reached"
    clock.now += 600
    assert second.reached() == "train.max_hours = 1 is reached"


def test_a_checkpoint_of_an_earlier_version_has_spent_nothing() -> None:
    clock = Clock()
    limits = clock.limits(hours=1)
    limits.resume(None)
    assert limits.seconds == 0
