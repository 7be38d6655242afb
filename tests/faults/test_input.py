"""Rows that change while a run is on, and a configuration that was changed before it goes on."""

from __future__ import annotations

import os

import pytest

from core.runs.control.client import ControlClient
from core.runs.record.store import Run
from tests.e2e.workers import (
    Workers,
    adapter_bytes,
    failure,
    finish,
    held_at,
    kill,
    notice_codes,
    wait_until_step,
    write_rows,
)

pytestmark = pytest.mark.long


def test_changed_rows_are_ignored_and_then_refused(workers: Workers, reference: Run) -> None:
    """Replaced, cut short and appended to: a run has its rows in memory, by hash."""
    rows = workers.train_data.read_bytes()
    run = workers.start("changing", held_at(3, 7))
    wait_until_step(run, 3)
    client = ControlClient(run)
    client.request("pause")
    write_rows(workers.train_data, 40, seed=99)
    client.request("resume")
    wait_until_step(run, 7)
    kill(run)
    for change in (rows[: len(rows) // 2], rows + rows[:200]):
        workers.train_data.write_bytes(change)
        workers.resume(run)
        end = failure(run)
        assert "has changed since step-" in end.reason or "line " in end.reason, end.reason
        assert end.step >= 5
    workers.train_data.write_bytes(rows)
    workers.resume(run)
    finish(run)
    assert adapter_bytes(run) == adapter_bytes(reference)
    assert "resumed" in notice_codes(run)


def test_options_that_were_changed_before_a_run_goes_on_are_named(workers: Workers) -> None:
    run = workers.start("changed", held_at(6), train={"max_steps": 12}, eval={"every_steps": None})
    wait_until_step(run, 6)
    kill(run)
    text = run.config_path.read_text()
    changed = text.replace("learning_rate = 0.005", "learning_rate = 0.006").replace("rank = 4\n", "rank = 8\n")
    assert changed.count("0.006") == changed.count("rank = 8\n") == 1
    run.config_path.write_text(changed)
    workers.resume(run)
    end = failure(run)
    assert end.reason == (
        f"{run.config_path} has changed since step-00000005: method.rank changed from 4 to 8, "
        "train.learning_rate changed from 0.005 to 0.006."
    )
    assert end.hint == "Put it back, or start a new run."
    run.config_path.write_text(text)
    os.utime(run.config_path)
    workers.resume(run)
    finish(run)
