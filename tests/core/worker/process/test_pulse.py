"""Time in which a process was awake."""

from __future__ import annotations

from core.worker.process.reports import AwakeClock


def test_time_in_which_the_process_was_suspended_is_not_counted() -> None:
    moment = 100.0
    awake = AwakeClock(2.0, lambda: moment)
    moment = 101.5
    assert awake.tick() == 1.5
    moment = 3701.5
    assert awake.tick() == 3.5
    moment = 3702.5
    assert awake.tick() == awake.seconds == 4.5
