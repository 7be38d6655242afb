"""The governor in real workers: rests change nothing, and pauses are the governor's or the user's."""

from __future__ import annotations

import pytest

from core.errors import UserError
from core.runs.control.client import ControlClient
from core.runs.record.events import GovernorEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from tests.core.hardware.conftest import fake_driver as fake_driver
from tests.waiting import wait_for

from . import workers as e2e
from .workers import Workers

SHORT = {"max_steps": 10}
#: A worker with a duty cycle from the beginning, which writes down how long it has rested.
RESTING = """
import atexit, os
from pathlib import Path
from core.worker.process import throttle
begin = throttle.Throttle.__init__
def resting(self, controls, *args, **options):
    begin(self, controls, float(os.environ["TEST_DUTY"]), *args, **options)
    atexit.register(lambda: Path(os.environ["TEST_RESTED"]).write_text(str(self.rested_seconds)))
throttle.Throttle.__init__ = resting
"""


def train_at(workers: Workers, duty: float) -> tuple[Run, float]:
    """A short run at a duty cycle, and the seconds that it rested."""
    rested = workers.directory / f"rested-{duty}"
    name = f"at-{duty}"
    told = {"TEST_DUTY": str(duty), "TEST_RESTED": str(rested)}
    run = workers.finished(name, e2e.hooked(workers.directory / name, RESTING, **told), train=SHORT)
    return run, float(rested.read_text())


@pytest.mark.long
def test_rests_change_no_bit_of_what_is_trained(workers: Workers) -> None:
    (full, none), (half, rested) = train_at(workers, 1.0), train_at(workers, 0.5)
    assert none == 0.0
    assert rested > 0.3 * sum(event.seconds for event in e2e.steps(half)), "it did rest"
    assert e2e.adapter_bytes(half) == e2e.adapter_bytes(full)
    assert e2e.losses(half) == e2e.losses(full)


def test_a_pause_of_the_governor_and_one_of_the_user_end_apart(workers: Workers) -> None:
    run = workers.held("governed", 2, train=SHORT)
    with ControlClient(run) as client:
        client.request("set", **{"hardware.disk_free_min_gb": 1_000_000})
        state = e2e.wait_until_state(run, "paused")
        assert state.reason.startswith("room on the disk is at ")
        assert state.reason.endswith("GB)")
        with pytest.raises(UserError, match="The governor pauses the run: room on the disk") as refused:
            client.request("resume")
        assert refused.value.hint.endswith(f"sooner with another limit: 'localtune-tui set {run.id}'.")
        client.request("pause")
        client.request("set", **{"hardware.disk_free_min_gb": None})
        wait_for(lambda: not run.state().reason, e2e.PATIENCE, "the governor's pause to end")
        assert run.state().state == "paused", "that of the user is on"
        for told in ("night.deadline", "hardware.temperature_limit_c"):
            value = {"night.deadline": "25:00", "hardware.temperature_limit_c": 80}[told]
            with pytest.raises(UserError):
                client.request("set", **{told: value})
        client.request("set", **{"night.deadline": "07:00"})
        client.request("resume")
    e2e.finish(run)
    actions = [event.action for event in e2e.only(GovernorEvent, run)]
    assert actions == ["pause", "resume"]
    history = read_history(run)
    assert history.settings == {"hardware.disk_free_min_gb": None, "night.deadline": "07:00"}
    assert [mark.kind for mark in history.marks].count("governor") == 2
    assert history.paused_seconds > 0
