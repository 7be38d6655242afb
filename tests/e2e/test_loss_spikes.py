"""Loss spikes in real workers: rows that teach nonsense, skipped, gone back for and left out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from core.runs.record.events import CheckpointEvent, NoticeEvent, RollbackEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import checkpoint_name, list_checkpoints, newest_valid
from core.worker.data.batches import DataOrder
from core.worker.progress.health import ROLLBACK_LIMIT
from tests.waiting import wait_for

from . import workers as e2e
from .workers import Workers

ROWS, BATCH, SEED = 128, 4, 7
#: The step after which there are losses enough to compare with: warm-up, one to begin with, and twenty.
ARMED = 23


def write_nonsense(workers: Workers, nonsense: Iterable[int]) -> str:
    """Write learnable rows, except for unlearnable rows at some steps; returns the lines of the first of these steps.

    All rows have the same number of tokens, so that the order depends only on the seed.
    """
    order = DataOrder([1] * ROWS, BATCH, SEED)
    windows = [order.window(step - 1) for step in nonsense]
    bad = {row for window in windows for row in window}
    dice, rows = random.Random(4), []
    for row in range(ROWS):
        answer = "".join(dice.choices("#%&^|~<>", k=16)) if row in bad else "@" * 16
        turns = [{"role": "user", "content": "ticket login"}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"messages": turns}))
    workers.train_data.write_text("\n".join(rows))
    first = sorted(row + 1 for row in windows[0])
    return f"train.jsonl lines {', '.join(map(str, first[:-1]))} and {first[-1]}"


def start(
    workers: Workers,
    name: str,
    action: str,
    *,
    every: int = 1000,
    keep: int = 1,
    variables: dict[str, str] | None = None,
) -> Run:
    train: dict[str, Any] = {"epochs": 1.0, "max_steps": None, "batch_size": BATCH, "seed": SEED}
    train |= {"on_loss_spike": action, "loss_spike_patience": 2}
    saving = {"every_steps": every, "keep": keep, "middle": False}
    return workers.start(name, variables, train=train, eval={"every_steps": None}, checkpoint=saving)


def test_a_run_that_went_back_is_one_that_never_saw_the_rows(workers: Workers) -> None:
    where = write_nonsense(workers, (27, 28, 29))
    run = start(workers, "back", "rollback")
    e2e.finish(run)
    (event,) = e2e.only(RollbackEvent, run)
    assert (event.step, event.first, event.last) == (ARMED, 27, 28)
    assert event.expected is not None
    assert event.loss > event.expected + 0.5
    assert where.partition(" ")[0] in event.rows
    told = [notice.message for notice in e2e.only(NoticeEvent, run) if notice.code == "loss_spike"]
    assert len(told) == 2, "the third step of nonsense is one alone, and patience is 2"
    assert f"at step 27, where about {event.expected:.2f} was expected" in told[0]
    assert where in told[0]
    done = [step.step for step in e2e.steps(run)]
    assert done == [*range(1, 29), *range(ARMED + 1, 27), *range(29, 33)]
    history = read_history(run)
    (mark,) = [mark for mark in history.marks if mark.kind == "rollback"]
    assert (mark.step, history.step, history.step_count) == (ARMED, 32, 30)
    assert "without steps 27 to 28" in mark.text

    killed = start(workers, "killed", "rollback", variables=e2e.held_at(27))
    e2e.wait_until_step(killed, 27)
    e2e.kill(killed)
    workers.resume(killed, e2e.HELD_BACK)
    wait_for(lambda: e2e.only(RollbackEvent, killed), e2e.PATIENCE, "the rollback", interval=0.001)
    e2e.kill(killed)
    workers.complete(killed)
    assert e2e.adapter_bytes(killed) == e2e.adapter_bytes(run)


@pytest.mark.long
def test_a_run_that_keeps_spiking_stops_at_its_good_checkpoint_and_goes_on_by_another_rule(workers: Workers) -> None:
    write_nonsense(workers, range(25, 33))
    run = start(workers, "often", "rollback", every=1)
    assert e2e.exit_code(run) == 3, e2e.log(run)
    end = e2e.ending(run)
    assert end.type == "stopped"
    assert "a loss spike (" in end.reason
    assert "at steps 31 to 32" in end.reason
    # The weights after step 24 have the loss of step 25, which is nonsense.
    assert [event.step for event in e2e.only(RollbackEvent, run)] == [23] * ROLLBACK_LIMIT
    (notice,) = [notice for notice in e2e.only(NoticeEvent, run) if notice.code == "loss_spike_stop"]
    assert f"after {ROLLBACK_LIMIT} rollbacks: the last good checkpoint is that of step 23" in notice.message
    found, damaged = newest_valid(run.checkpoints_path)
    assert found is not None
    assert (found.step, damaged) == (23, [])
    assert len(list_checkpoints(run.checkpoints_path)) == 1
    assert end.adapter == f"checkpoints/{checkpoint_name(23)}/adapter"
    run.config_path.write_text(
        run.config_path.read_text().replace('on_loss_spike = "rollback"', 'on_loss_spike = "warn"')
    )
    workers.complete(run)


@pytest.mark.long
def test_a_skipped_update_changes_no_weight(workers: Workers) -> None:
    write_nonsense(workers, (27, 29))
    run = start(workers, "skipped", "skip", every=1, keep=9)
    e2e.finish(run)
    assert e2e.notice_codes(run).count("loss_spike") == 2
    assert [event.step for event in e2e.only(CheckpointEvent, run)] == list(range(1, 33))

    def weights(step: int) -> bytes:
        return (run.checkpoints_path / checkpoint_name(step) / "adapter" / "adapter_model.safetensors").read_bytes()

    changed = [step for step in range(26, 31) if weights(step) != weights(step - 1)]
    assert changed == [26, 28, 30]
