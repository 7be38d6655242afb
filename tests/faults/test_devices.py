"""Devices that fail: a card that is lost in the middle of a step, a step that hangs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.runs.record.events import EvalEvent, NoticeEvent
from core.runs.record.state import RunState, infer_state
from tests.e2e import workers as e2e
from tests.e2e.workers import Workers
from tests.faults.injections import RELEASE_VARIABLE
from tests.forking import FAULT_VARIABLE
from tests.waiting import wait_for


def test_a_card_that_is_lost_in_a_step_ends_the_run_in_a_sentence_and_loses_nothing(workers: Workers) -> None:
    options: dict[str, Any] = {"eval": {"every_steps": None}, "train": {"max_steps": 14}}
    run = workers.start("lost", {FAULT_VARIABLE: "lost_gpu:9"}, **options)
    end = e2e.failure(run)
    done = [event.step for event in e2e.steps(run)]
    assert done == list(range(1, end.step + 1))
    assert end.reason.startswith(f"The GPU failed in step {end.step + 1}: the card has stopped at an error (CUDA error")
    assert "update the driver" in end.hint
    assert f"continue {run.id}" in end.hint
    assert end.adapter == "checkpoints/step-00000005/adapter"
    assert e2e.exit_code(run) == 4
    # On a working card it continues, and ends as an undisturbed run.
    undisturbed = workers.start("undisturbed", **options)
    workers.resume(run)
    for each in (run, undisturbed):
        e2e.finish(each)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(undisturbed)


@pytest.mark.long
def test_a_step_that_hangs_in_its_rows_says_so(workers: Workers, tmp_path: Path) -> None:
    release = tmp_path / "release"
    faults = {FAULT_VARIABLE: "hang_in_rows:25", RELEASE_VARIABLE: str(release)}
    # A single micro-batch per step, so that the call that hangs belongs to a step.
    run = workers.start("hung", faults, train={"max_steps": 40, "micro_batch_size": 4}, eval={"every_steps": None})
    wait_for(lambda: "slow_step" in e2e.notice_codes(run), e2e.PATIENCE, "the notice")
    recorded = RunState.read(run.state_path)
    assert recorded is not None
    assert (recorded.state, run.state().state) == ("training", "training"), "the heart beats"
    step = recorded.step + 1
    assert recorded.step_started is not None
    silent = infer_state(recorded, now=recorded.updated + 45)
    assert silent.state == "stalled"
    assert silent.reason.startswith(f"no sign of life for 45 s; step {step} has been running for ")
    (notice,) = [event for event in e2e.only(NoticeEvent, run) if event.code == "slow_step"]
    assert notice.message.startswith(f"Step {step} takes long: ")
    assert notice.message.endswith("It is at reading its rows.")
    assert f"stop --force {run.id}" in notice.hint
    release.touch()
    e2e.finish(run)


def test_evaluations_between_steps_change_no_bit_of_a_base_in_4_bits(workers: Workers) -> None:
    """On some CPUs bitsandbytes packs 4-bit weights anew at the first evaluation, and gradients are lost after it."""
    without, measured = (
        workers.start("measured", train={"max_steps": 8}, eval={"every_steps": every}) for every in (None, 2)
    )
    for run in (without, measured):
        e2e.finish(run)
    assert [event.step for event in e2e.only(EvalEvent, measured)][:3] == [2, 4, 6]
    assert [(event.loss, event.grad_norm) for event in e2e.steps(measured)] == [
        (event.loss, event.grad_norm) for event in e2e.steps(without)
    ]
    assert e2e.adapter_bytes(measured) == e2e.adapter_bytes(without)
