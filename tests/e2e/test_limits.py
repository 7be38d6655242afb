"""A run with a limit ends with its result, and records its use."""

from __future__ import annotations

import json

from core.runs.record.events import EvalEvent
from core.runs.record.store import complete_checkpoints
from tests.e2e.workers import Workers, exit_code, only


def test_a_run_whose_hours_are_over_is_finished_with_its_result(workers: Workers) -> None:
    # Any work at all is more than that.
    run = workers.start(train={"max_hours": 1e-6}, eval={"every_steps": None, "exact_match": False})
    assert exit_code(run) == 0
    state = run.state()
    assert state.state == "finished"
    assert state.step == 1
    assert state.reason.startswith("train.max_hours = 1e-6 is reached, after step 1 of 48")
    assert run.adapter_path.is_dir()
    manifest = json.loads((complete_checkpoints(run)[-1] / "manifest.json").read_text())
    assert manifest["limits"]["seconds"] > 0
    assert [event.step for event in only(EvalEvent, run)] == [1], "the result is measured"
