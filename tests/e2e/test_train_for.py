"""Runs that train the weights of the file that they become."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from core.runs.catalog.trained import TrainedFile, find_trained
from core.runs.record.events import EvalEvent
from core.runs.record.store import Run

from .workers import Workers, adapter_bytes, ending, finish, held_at, kill, notice_codes, only, steps, wait_until_step

pytestmark = pytest.mark.long

#: Of them the last ten are for the file.
TOTAL, BEFORE = 30, 20
OPTIONS: dict[str, dict[str, Any]] = {
    "method": {"dropout": 0.0, "train_for": "q4_0"},
    "train": {"max_steps": TOTAL, "precision": "fp32"},
    "eval": {"every_steps": 10, "exact_match": True},
    "checkpoint": {"every_steps": 1, "keep": 100},
}


def results(run: Run) -> tuple[Any, ...]:
    """Outcome of a run: exact weights, losses, evaluations, and the best step."""
    measured = [(event.step, event.loss, event.exact_match) for event in only(EvalEvent, run)]
    losses = {event.step: event.loss for event in steps(run)}
    return adapter_bytes(run), losses, sorted(set(measured)), ending(run).best


def without(run: Run, after: int) -> None:
    """Take the checkpoints after a step away."""
    for path in run.checkpoints_path.iterdir():
        if path.name.startswith("step-") and int(path.name.removeprefix("step-")) > after:
            shutil.rmtree(path)


def test_a_run_that_goes_on_before_at_and_after_the_switch_ends_bit_equal(workers: Workers) -> None:
    whole = workers.start("whole", **OPTIONS)
    finish(whole)
    wanted = results(whole)
    assert notice_codes(whole).count("file_weights") == 1
    assert find_trained(whole, BEFORE).file is None
    assert find_trained(whole, BEFORE + 1).file == TrainedFile("Q4_0", "float32")
    assert find_trained(whole).file == TrainedFile("Q4_0", "float32")
    best = ending(whole).best
    assert best is not None
    assert best > BEFORE, "what was measured before counts no more"

    plain = workers.start("plain", **OPTIONS | {"method": {"dropout": 0.0}})
    finish(plain)
    losses = {event.step: event.loss for event in steps(plain)}
    assert [step for step in range(1, TOTAL + 1) if losses[step] == wanted[1][step]] == list(range(1, BEFORE + 1))

    killed = workers.start("killed", held_at(BEFORE + 2), **OPTIONS)
    wait_until_step(killed, BEFORE + 2)
    kill(killed)
    for step in (BEFORE - 7, BEFORE, BEFORE + 1):
        twin = workers.copy(killed, f"from-{step}")
        without(twin, step)
        workers.resume(twin)
        finish(twin)
        assert results(twin) == wanted, step
