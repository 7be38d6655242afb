"""The governor in real workers: rests change nothing, and pauses are the governor's or the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from core.runs.client import ControlClient
from core.runs.events import GovernorEvent
from core.runs.history import read_history
from core.runs.store import Run, create_run
from tests.waiting import wait_for

from .workers import (
    PATIENCE,
    Workers,
    adapter_bytes,
    finish,
    only,
    steps,
    wait_until_state,
    wait_until_step,
)

ROOT = Path(__file__).parents[2]
SHORT = {"max_steps": 10}
#: A worker with a duty cycle from the beginning.
WORKER = """
import sys
from pathlib import Path
from core.runs.store import Run
from core.worker.libraries import import_libraries
from core.worker.process import environment
from core.worker.process.control import Controls
from core.worker.process.recorder import Recorder
from core.worker.process.throttle import Throttle

environment.prepare()
import_libraries()
from core.worker.train import train

run, controls = Run(Path(sys.argv[1])), Controls()
throttle = Throttle(controls, duty=float(sys.argv[2]))
train(run.config(), Recorder(run), controls, resume=False, throttle=throttle)
print(throttle.rested_seconds)
"""


def train_at(workers: Workers, duty: float) -> tuple[Run, float]:
    """A short run at a duty cycle, and the seconds that it rested."""
    with workers.environment():
        run = create_run(workers.config(train=SHORT), f"at-{duty}")
        done = subprocess.run(
            [sys.executable, "-c", WORKER, str(run.path), str(duty)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return run, float(done.stdout.splitlines()[-1])


def test_rests_change_no_bit_of_what_is_trained(workers: Workers) -> None:
    (full, none), (half, rested) = train_at(workers, 1.0), train_at(workers, 0.5)
    assert none == 0.0
    assert rested > 0.3 * sum(event.seconds for event in steps(half)), "it did rest"
    assert adapter_bytes(half) == adapter_bytes(full)
    assert [event.loss for event in steps(half)] == [event.loss for event in steps(full)]


def test_a_pause_of_the_governor_and_one_of_the_user_end_apart(workers: Workers) -> None:
    run = workers.start("governed", train=SHORT)
    wait_until_step(run, 2)
    with ControlClient(run) as client:
        client.request("set", **{"hardware.disk_free_min_gb": 1_000_000})
        state = wait_until_state(run, "paused")
        assert state.reason.startswith("room on the disk is at ")
        assert state.reason.endswith("GB)")
        with pytest.raises(UserError, match="The governor pauses the run: room on the disk"):
            client.request("resume")
        client.request("pause")
        client.request("set", **{"hardware.disk_free_min_gb": None})
        wait_for(lambda: not run.state().reason, PATIENCE, "the governor's pause to end")
        assert run.state().state == "paused", "that of the user is on"
        for told in ("night.deadline", "hardware.temperature_limit_c"):
            value = {"night.deadline": "25:00", "hardware.temperature_limit_c": 80}[told]
            with pytest.raises(UserError):
                client.request("set", **{told: value})
        client.request("set", **{"night.deadline": "07:00"})
        client.request("resume")
    finish(run)
    actions = [event.action for event in only(GovernorEvent, run)]
    assert actions == ["pause", "resume"]
    history = read_history(run)
    assert history.settings == {"hardware.disk_free_min_gb": None, "night.deadline": "07:00"}
    assert [mark.kind for mark in history.marks].count("governor") == 2
    assert history.paused_seconds > 0
