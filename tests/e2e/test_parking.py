"""Runs that give their device back and take it again: nothing of them is left in memory, and the result is the same."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.errors import UserError
from core.hardware.cpu import process_rss
from core.runs.control.client import ControlClient
from core.runs.record.events import ControlEvent
from core.runs.record.files import try_lock
from core.runs.record.history import read_history
from core.runs.record.store import Run
from tests.waiting import wait_for

from .workers import (
    PATIENCE,
    STEPS,
    Workers,
    adapter_bytes,
    exit_code,
    finish,
    held_at,
    kill,
    notice_codes,
    only,
    pid_of,
    steps,
    wait_until_listening,
    wait_until_parked,
    wait_until_state,
    wait_until_step,
)

#: Most resident memory of a parked run, in bytes: an interpreter with the configuration's library.
MOST_PARKED = 120 << 20


def request(run: Run, command: str) -> None:
    """Ask for something that is answered at the next control point."""
    with ControlClient(run, timeout=PATIENCE) as client:
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
def test_a_run_parked_before_its_first_step_and_at_a_random_one_ends_bit_equal(
    workers: Workers, reference: Run
) -> None:
    moments = [0, random.SystemRandom().randrange(2, STEPS - 4)]
    run = workers.start("parked", workers.held_anew(*moments))
    print(f"parked at {moments}")  # noqa: T201 - shown when the test fails
    wait_until_listening(run)
    worker = pid_of(run)
    for moment in moments:
        wait_until_step(run, moment)
        training = process_rss(worker)
        request(run, "park")
        state = wait_until_parked(run)
        assert (state.state, state.parked, state.pid) == ("paused", "on request", worker)
        resident = process_rss(worker)
        assert resident is not None
        assert training is not None
        assert resident < min(MOST_PARKED, training / 3)
        assert try_lock(run) is None, "no other worker may take the run meanwhile"
        with pytest.raises(UserError, match="its model is not in memory"):
            request(run, "generate")
        request(run, "resume")
    finish(run)
    assert pid_of(run) == worker
    assert adapter_bytes(run) == adapter_bytes(reference)
    assert [event.step for event in steps(run)] == list(range(1, STEPS + 1)), "no step is done twice"
    assert [event.loss for event in steps(run)] == [event.loss for event in steps(reference)]
    told = [(event.command, event.result) for event in only(ControlEvent, run)]
    assert told == [("park", "ok"), ("resume", "ok")] * 2
    assert read_history(run).starts == 3


@pytest.mark.long
def test_a_parked_run_that_is_stopped_or_killed_goes_on_from_there(workers: Workers, reference: Run) -> None:
    run = workers.held("parked", 4)
    request(run, "park")
    step = wait_until_parked(run).step
    request(run, "stop")
    assert exit_code(run) == 3
    ended = run.state()
    assert (ended.state, ended.step, ended.parked, ended.socket) == ("stopped", step, "", None)
    workers.resume(run, held_at(12))
    wait_until_step(run, 12)
    request(run, "park")
    wait_until_parked(run)
    kill(run)
    assert run.state().state == "lost"
    workers.complete(run)
    assert adapter_bytes(run) == adapter_bytes(reference)
    assert len(steps(run)) == STEPS, "nothing was lost"


def test_a_run_gives_its_device_to_a_program_until_that_is_gone(
    workers: Workers, reference: Run, tmp_path: Path
) -> None:
    program = tmp_path / f"a-game-of-chess-{os.getpid()}"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with running(program):
        run = workers.start("guest", parking={"programs": program.name, "calm": 0})
        state = wait_until_parked(run)
        assert state.parked == f"{program.name} is running"
        assert notice_codes(run).count("parked") == 1
        with pytest.raises(UserError, match=f"cannot have its device back: {program.name} is running"):
            request(run, "resume")
    finish(run)
    assert adapter_bytes(run) == adapter_bytes(reference)
    senders = [(event.command, event.sender) for event in only(ControlEvent, run)]
    assert senders == [("park", "another program"), ("resume", "the parking rules")]


@pytest.mark.long
def test_a_paused_run_is_paused_again_after_it_was_parked_by_itself(workers: Workers, tmp_path: Path) -> None:
    program = tmp_path / f"a-game-of-go-{os.getpid()}"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    run = workers.held("paused", 3, parking={"programs": program.name, "calm": 0})
    request(run, "pause")
    wait_until_state(run, "paused")
    with running(program):
        wait_until_parked(run)
    wait_for(lambda: not run.state().parked and run.state().state == "paused", PATIENCE, "the pause to be on again")
    before = run.state().step
    request(run, "stop")
    assert exit_code(run) == 3
    assert run.state().step == before
