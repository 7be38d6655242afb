"""Runs that give their device back and take it again: nothing of them is left in memory, and the result is the same."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.hardware.cpu import process_rss
from core.launch import launcher
from core.runs.control.client import ControlClient
from core.runs.control.devices import occupant
from core.runs.record.events import ControlEvent
from core.runs.record.history import read_history
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run, try_lock
from tests.waiting import wait_for

from . import workers as e2e
from .workers import Workers

#: Most resident memory of a parked run, in bytes: an interpreter with the configuration's library.
MOST_PARKED = 120 << 20


def request(run: Run, command: str) -> None:
    """Ask for something that is answered at the next control point."""
    with ControlClient(run, timeout=e2e.PATIENCE) as client:
        client.request(command)


@contextmanager
def running(program: Path) -> Iterator[None]:
    """A program that runs."""
    process = subprocess.Popen([program, "600"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.anew
def test_a_run_parked_at_random_steps_ends_bit_equal(workers: Workers, reference: Run) -> None:
    moments = sorted(random.SystemRandom().sample(range(2, e2e.STEPS - 4), 2))
    run = workers.start("parked", workers.held_anew(*moments))
    print(f"parked at {moments}")  # noqa: T201 - shown when the test fails
    worker = e2e.pid_of(run)
    for moment in moments:
        e2e.wait_until_step(run, moment)
        training = process_rss(worker)
        request(run, "park")
        state = e2e.wait_until_parked(run)
        assert (state.state, state.parked, state.pid) == ("paused", "on request", worker)
        resident = process_rss(worker)
        assert resident is not None
        assert training is not None
        assert resident < min(MOST_PARKED, training / 3)
        assert try_lock(run) is None, "no other worker may take the run meanwhile"
        with pytest.raises(UserError, match="its model is not in memory"):
            request(run, "generate")
        request(run, "resume")
    e2e.finish(run)
    assert e2e.pid_of(run) == worker
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    assert [event.step for event in e2e.steps(run)] == list(range(1, e2e.STEPS + 1)), "no step is done twice"
    assert e2e.losses(run) == e2e.losses(reference)
    told = [(event.command, event.result) for event in e2e.only(ControlEvent, run)]
    assert told == [("park", "ok"), ("resume", "ok")] * 2
    assert read_history(run).starts == 3


@pytest.mark.long
def test_a_run_parked_before_its_first_step_begins_anew(workers: Workers, reference: Run) -> None:
    run = workers.start("early", e2e.held_at(0))
    e2e.wait_until_listening(run)
    request(run, "park")
    assert e2e.wait_until_parked(run).step == 0
    assert not run.checkpoints_path.exists() or not os.listdir(run.checkpoints_path)
    request(run, "resume")
    e2e.finish(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)


@pytest.mark.long
def test_a_parked_run_that_is_stopped_or_killed_goes_on_from_there(workers: Workers, reference: Run) -> None:
    run = workers.held("parked", 4)
    request(run, "park")
    step = e2e.wait_until_parked(run).step
    request(run, "stop")
    assert e2e.exit_code(run) == 3
    ended = run.state()
    assert (ended.state, ended.step, ended.parked, ended.socket) == ("stopped", step, "", None)
    workers.resume(run, e2e.held_at(12))
    e2e.wait_until_step(run, 12)
    request(run, "park")
    e2e.wait_until_parked(run)
    e2e.kill(run)
    assert run.state().state == "lost"
    workers.complete(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    assert len(e2e.steps(run)) == e2e.STEPS, "nothing was lost"


def test_a_program_gets_the_device_until_it_is_gone(workers: Workers, reference: Run, tmp_path: Path) -> None:
    program = tmp_path / f"a-game-of-chess-{os.getpid()}"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with running(program):
        run = workers.start("guest", parking={"programs": program.name, "calm": 0})
        state = e2e.wait_until_parked(run)
        assert state.parked == f"{program.name} is running"
        assert e2e.notice_codes(run).count("parked") == 1
        with pytest.raises(UserError, match=f"cannot have its device back: {program.name} is running"):
            request(run, "resume")
    e2e.finish(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    senders = [(event.command, event.sender) for event in e2e.only(ControlEvent, run)]
    assert senders == [("park", "another program"), ("resume", "the parking rules")]


@pytest.mark.long
def test_a_paused_run_is_paused_again_after_it_was_parked_by_itself(workers: Workers, tmp_path: Path) -> None:
    program = tmp_path / f"a-game-of-go-{os.getpid()}"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    run = workers.held("paused", 3, parking={"programs": program.name, "calm": 0})
    request(run, "pause")
    e2e.wait_until_state(run, "paused")
    with running(program):
        e2e.wait_until_parked(run)
    wait_for(lambda: not run.state().parked and run.state().state == "paused", e2e.PATIENCE, "the pause to be on again")
    before = run.state().step
    request(run, "stop")
    assert e2e.exit_code(run) == 3
    assert run.state().step == before


#: A run of a few steps without anything between them.
ALONE: dict[str, dict[str, Any]] = {
    "eval": {"every_steps": None},
    "checkpoint": {"every_steps": None},
    "parking": {"calm": 0},
}


def start_alone(workers: Workers, name: str, steps_: int = 3, **sections: dict[str, Any]) -> Run:
    """Start a run as the queue does."""
    config = workers.config(**ALONE, train={"max_steps": steps_}, **sections)
    with workers.environment():
        run = create_run(config, name)
        launcher.launch(run, alone=True)
    return run


def wait_until_waiting(run: Run) -> RunState:
    """Wait until a run waits for its device, and takes commands there."""
    return e2e.wait_until(run, lambda state: "has the device" in state.parked and state.socket, "waiting")


@pytest.mark.long
def test_a_run_of_the_queue_waits_for_one_by_hand_and_goes_on_by_itself(workers: Workers) -> None:
    by_hand = workers.start("hand", **ALONE, train={"max_steps": 10_000})
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
    by_hand = workers.finished("hand", **ALONE, train={"max_steps": 2})
    assert e2e.notice_codes(by_hand).count("shared_device") == 1
    assert "shared_device" not in e2e.notice_codes(queued)
    with workers.environment():
        assert occupant(["cpu"]) == queued.id
