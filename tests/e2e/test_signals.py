"""Signals to a live worker."""

from __future__ import annotations

import signal

import pytest

from core.errors import UserError
from core.runs.control.client import ControlClient
from core.runs.record.events import CheckpointEvent, ControlEvent, PhaseEvent
from core.runs.record.store import Run
from tests.waiting import wait_for

from .workers import (
    PATIENCE,
    Workers,
    adapter_bytes,
    ending,
    exit_code,
    finish,
    held_at,
    log,
    only,
    signal_worker,
    steps,
    wait_until_state,
    wait_until_step,
)


def test_sighup_means_nothing_and_sigterm_stops_after_a_checkpoint(workers: Workers, reference: Run) -> None:
    run = workers.start("term", held_at(4))
    wait_until_step(run, 2)
    signal_worker(run, signal.SIGHUP)
    wait_until_step(run, 4)
    signal_worker(run, signal.SIGTERM)
    assert exit_code(run) == 3
    state, end = run.state(), ending(run)
    assert (state.state, end.type) == ("stopped", "stopped")
    assert end.reason == state.reason == f"stopped by SIGTERM after step {end.step}"
    assert end.step == steps(run)[-1].step == only(CheckpointEvent, run)[-1].step
    assert [(event.command, event.sender) for event in only(ControlEvent, run)] == [("stop", "SIGTERM")]
    assert not run.socket_path.exists()
    workers.resume(run)
    finish(run)
    assert adapter_bytes(run) == adapter_bytes(reference)


def test_sigint_stops_a_paused_run_too(workers: Workers) -> None:
    run = workers.start("int", held_at(1))
    wait_until_step(run, 1)
    step = ControlClient(run).request("pause")["step"]
    wait_until_state(run, "paused")
    signal_worker(run, signal.SIGINT)
    assert exit_code(run) == 3
    assert ending(run).reason == f"stopped by SIGINT after step {step}"
    assert only(CheckpointEvent, run)[-1].step == step


def test_a_stop_before_training_leaves_nothing_half_written(workers: Workers) -> None:
    # Held before its first step at the latest, should the signal come late.
    runs = {phase: workers.start(phase.replace("_", "-"), held_at(0)) for phase in ("importing", "preparing_data")}
    for phase, run in runs.items():

        def entered(run: Run = run, phase: str = phase) -> bool:
            return any(event.name == phase for event in only(PhaseEvent, run))

        wait_for(entered, PATIENCE, phase)
        signal_worker(run, signal.SIGTERM)
    for run in runs.values():
        assert exit_code(run) == 3, log(run)
        end = ending(run)
        assert (end.type, end.step, end.adapter) == ("stopped", 0, None)
        assert run.state().state == "stopped"
        assert not run.adapter_path.exists()
        assert not run.checkpoints_path.exists()
        assert "Traceback" not in log(run)
        with pytest.raises(UserError, match="no complete checkpoint"):
            workers.resume(run)
