"""Rows that change while a run is on, and a configuration that was changed before it goes on."""

from __future__ import annotations

import os

import pytest

from core.runs.control.client import ControlClient
from core.runs.record.store import Run
from tests.e2e import workers as e2e
from tests.e2e.workers import Workers

pytestmark = pytest.mark.long


def test_changed_rows_are_ignored_and_then_refused(workers: Workers, reference: Run) -> None:
    """Replaced, cut short and appended to: a run has its rows in memory, by hash."""
    rows = workers.train_data.read_bytes()
    run = workers.start("changing", e2e.held_at(3, 7))
    e2e.wait_until_step(run, 3)
    client = ControlClient(run)
    client.request("pause")
    e2e.write_rows(workers.train_data, 40, seed=99)
    client.request("resume")
    e2e.wait_until_step(run, 7)
    e2e.kill(run)
    for change in (rows[: len(rows) // 2], rows + rows[:200]):
        workers.train_data.write_bytes(change)
        workers.resume(run)
        end = e2e.failure(run)
        assert "has changed since step-" in end.reason or "line " in end.reason, end.reason
        assert end.step >= 5
    workers.train_data.write_bytes(rows)
    workers.complete(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    assert "resumed" in e2e.notice_codes(run)


def test_options_that_were_changed_before_a_run_goes_on_are_named(workers: Workers) -> None:
    run = workers.held("changed", 6, train={"max_steps": 12}, eval={"every_steps": None})
    e2e.kill(run)
    text = run.config_path.read_text()
    changed = text.replace("learning_rate = 0.005", "learning_rate = 0.006").replace("rank = 4\n", "rank = 8\n")
    assert changed.count("0.006") == changed.count("rank = 8\n") == 1
    run.config_path.write_text(changed)
    workers.resume(run)
    end = e2e.failure(run)
    assert end.reason == (
        f"{run.config_path} has changed since step-00000005: method.rank changed from 4 to 8, "
        "train.learning_rate changed from 0.005 to 0.006."
    )
    assert end.hint == "Put it back, or start a new run."
    run.config_path.write_text(text)
    os.utime(run.config_path)
    workers.complete(run)
