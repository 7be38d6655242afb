"""Real workers on the same device: a worker of the queue waits, and a worker started by hand continues beside it."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import UserError
from core.launch import launcher
from core.runs.control.client import ControlClient
from core.runs.control.devices import occupant
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run

from . import workers as e2e
from .workers import Workers

#: A run of a few steps without anything between them.
SHORT: dict[str, dict[str, Any]] = {
    "eval": {"every_steps": None},
    "checkpoint": {"every_steps": None},
    "parking": {"calm": 0},
}


def start_alone(workers: Workers, name: str, steps_: int = 3, **sections: dict[str, Any]) -> Run:
    """Start a run as the queue does."""
    config = workers.config(**SHORT, train={"max_steps": steps_}, **sections)
    with workers.environment():
        run = create_run(config, name)
        launcher.launch(run, alone=True)
    workers.runs.append(run)
    return run


def wait_until_waiting(run: Run) -> RunState:
    """Wait until a run waits for its device, and takes commands there."""
    return e2e.wait_until(run, lambda state: "has the device" in state.parked and state.socket, "waiting")


@pytest.mark.long
def test_a_run_of_the_queue_waits_for_one_by_hand_and_goes_on_by_itself(workers: Workers) -> None:
    by_hand = workers.start("hand", **SHORT, train={"max_steps": 10_000})
    e2e.wait_until_step(by_hand, 1)
    queued = start_alone(workers, "queued")
    assert wait_until_waiting(queued).parked == f"{by_hand.id} has the device"
    with ControlClient(queued, timeout=e2e.PATIENCE) as client, pytest.raises(UserError, match="has the device"):
        client.request("resume")
    assert not e2e.steps(queued)
    e2e.kill(by_hand)
    e2e.finish(queued)
    assert len(e2e.steps(queued)) == 3
    assert e2e.log(queued).count("== worker started anew") == 2
    with workers.environment():
        assert occupant(["cpu"]) is None


def test_one_by_hand_trains_beside_one_of_the_queue_with_a_warning(workers: Workers) -> None:
    queued = start_alone(workers, "queued", 10_000)
    e2e.wait_until_step(queued, 1)
    by_hand = workers.finished("hand", **SHORT, train={"max_steps": 2})
    assert e2e.notice_codes(by_hand).count("shared_device") == 1
    assert "shared_device" not in e2e.notice_codes(queued)
    with workers.environment():
        assert occupant(["cpu"]) == queued.id
