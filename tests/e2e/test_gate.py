"""The gate and the general probe of real runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from core.commands import runs, watch
from core.commands.common import exit_code as code_of
from core.runs.catalog.result import result_of
from core.runs.catalog.table import DEFAULT_SORT
from core.runs.catalog.trained import checkpoint_steps, find_trained
from core.runs.control.client import ControlClient
from core.runs.record.events import EvalEvent, ProbeEvent, StepEvent
from core.runs.record.history import read_history
from core.runs.record.state import EXIT_REFUSED
from core.units import format_number
from tests.e2e.workers import Workers, adapter_bytes, ending, exit_code, log, only

PROBED = {"every_steps": 4, "exact_match": False, "probe": True}
#: Few steps, measured in between, with dropout on.
SHORT: dict[str, dict[str, Any]] = {"train": {"max_steps": 8}, "eval": PROBED}


@pytest.mark.long
def test_the_probe_is_reported_and_changes_nothing_of_what_is_trained(workers: Workers) -> None:
    told = workers.finished("probed", **SHORT)
    silent = workers.finished("unprobed", **SHORT | {"eval": SHORT["eval"] | {"probe": False}})
    assert adapter_bytes(told) == adapter_bytes(silent), "bit for bit"
    losses = [[event.loss for event in only(StepEvent, run)] for run in (told, silent)]
    assert losses[0] == losses[1]
    (before,) = only(ProbeEvent, told)
    assert before.step == 0
    measured = only(EvalEvent, told)
    assert [event.step for event in measured] == [4, 8]
    assert all(event.probe_loss is not None and event.probe_loss > 0 for event in measured)
    assert measured[-1].probe_loss != before.loss
    assert only(ProbeEvent, silent) == []
    assert all(event.probe_loss is None for event in only(EvalEvent, silent))
    history = read_history(told)
    assert list(history.probe_loss.steps) == [0, 4, 8]
    measure = next(found for found in result_of(told, told.state(), history).measures if found.name == "probe loss")
    assert (measure.before, measure.after) == (before.loss, measured[-1].probe_loss)


def test_a_refused_result_is_not_written(workers: Workers, capsys: pytest.CaptureFixture[str]) -> None:
    gate = ["loss <= 0.01", "probe_loss <= before + 100"]
    run = workers.start("refused", **SHORT | {"eval": SHORT["eval"] | {"gate": gate}})
    assert exit_code(run) == EXIT_REFUSED, log(run)
    assert not run.adapter_path.exists()
    state, end = run.state(), ending(run)
    assert (state.state, end.type, end.adapter) == ("finished", "finished", None)
    assert state.refused == end.refused
    assert state.refused.startswith("loss is ")
    assert "probe_loss" not in state.refused
    assert code_of(state) == EXIT_REFUSED
    trained = find_trained(run)
    assert trained.name == "step-8", "its checkpoint is there to be looked at"
    assert state.refused in trained.warning

    with workers.environment():
        assert watch.run(argparse.Namespace(run=run.id, json=False, plain=False)) == EXIT_REFUSED
        lines = capsys.readouterr().out
        assert "refused by eval.gate" in lines
        assert "adapter   " not in lines
        listed = {"sort": DEFAULT_SORT, "reverse": False, "filter": "", "all": False}
        runs.run(argparse.Namespace(json=True, **listed))
        rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows[run.id]["refused"] == state.refused
        runs.run(argparse.Namespace(json=False, **listed))
        assert "finished (refused)" in capsys.readouterr().out


@pytest.mark.long
def test_the_best_step_that_is_refused_is_the_one_that_is_named(workers: Workers) -> None:
    options: dict[str, dict[str, Any]] = {
        "train": {"max_steps": 40, "learning_rate": 0.05, "warmup": 0.0, "scheduler": "constant"},
        "eval": {"every_steps": 2, "exact_match": False, "samples": 0, "patience": 1, "gate": "loss <= 0.01"},
        "checkpoint": {"every_steps": 1, "keep": 3, "final": "best"},
    }
    run = workers.start("rising", **options)
    assert exit_code(run) == EXIT_REFUSED, log(run)
    losses = {event.step: event.loss for event in only(EvalEvent, run)}
    judged, end = min(losses, key=losses.__getitem__), ending(run)
    assert judged < end.step
    assert end.result_step == judged
    assert run.state().refused == f"loss is {format_number(losses[judged])} and should be <= {format_number(0.01)}"
    newest = checkpoint_steps(run)[-1]
    assert (newest, judged in checkpoint_steps(run), len(checkpoint_steps(run)) >= 3) == (end.step, True, True)
    assert find_trained(run).label == f"{run.id}, step-{judged} (result refused by eval.gate)"


@pytest.mark.long
def test_a_gate_counts_what_was_measured_before_the_run_was_continued(workers: Workers) -> None:
    options = SHORT | {
        "train": {"max_steps": 20},
        "eval": PROBED | {"every_steps": 20, "baseline": True, "gate": "probe_loss <= before - 100"},
    }
    run = workers.held("cut", 3, **options)
    with ControlClient(run) as client:
        client.request("stop")
    assert exit_code(run) == 3
    assert run.state().refused == ""
    workers.resume(run)
    assert exit_code(run) == EXIT_REFUSED
    assert "was not measured" not in run.state().refused
