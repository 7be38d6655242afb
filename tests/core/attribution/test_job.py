"""Runs whose answers can be traced, and the checkpoints that are compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.attribution.job import attribution_job, chosen_steps, refuse, refuse_run
from core.attribution.result import AttributedRow, Attribution, AttributionRequest
from core.config.schema import Config
from core.errors import UserError
from core.runs.record.events import FinishedEvent, encode_event
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.cases import cases


def config_of(**sections: Any) -> Config:
    return Config.model_validate({"data": {"train": "rows.jsonl"}, **sections})


def make_run(*steps: int, state: str = "finished", **sections: Any) -> Run:
    """A run that is over, with checkpoints as far as anyone looks at them without torch."""
    run = create_run(config_of(**sections), "traced")
    found = RunState.read(run.state_path)
    assert found is not None
    replace(found, state=state).write(run.state_path)
    for step in steps:
        path = run.checkpoints_path / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "manifest.json").write_text("{}")
    return run


@cases(
    ("sections", "reason"),
    [
        ({"method": {"name": "full"}}, "method.name = full trains the model's own weights"),
        ({"method": {"dora": True}}, "the magnitudes of DoRA"),
        ({"method": {"init": "pissa"}}, "PiSSA trains beside a second, frozen adapter"),
        ({"method": {"train_for": "q8_0"}}, "the weights of a q8_0 file"),
        ({"train": {"objective": "dpo"}}, "a row of dpo is compared with a reference"),
    ],
)
def test_methods_without_exact_row_gradients_are_refused_with_the_reason(sections: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"^An answer of this run cannot be traced to rows: .*{reason}"):
        refuse(config_of(**sections))
    refuse(config_of())


def test_a_run_needs_an_end_and_a_checkpoint(private_home: Path) -> None:
    with pytest.raises(UserError, match="can be traced to rows when it is over"):
        refuse_run(make_run(5, state="queued"))
    with pytest.raises(UserError, match="has no checkpoint, whose optimizer states"):
        refuse_run(make_run())
    refuse_run(make_run(5))


@cases(
    ("there", "result", "chosen"),
    [
        ((15, 24, 27, 30), 30, [15, 30]),
        ((24, 27, 30), 30, [24, 30]),
        ((10, 20, 30), 20, [10, 20]),
        ((30,), None, [30]),
        ((10, 20), 25, [10, 20]),
    ],
)
def test_the_middle_and_the_result_are_compared(
    private_home: Path, there: tuple[int, ...], result: int | None, chosen: list[int]
) -> None:
    run = make_run(*there)
    if result is not None:
        event = FinishedEvent(reason="", step=result, adapter="adapter")
        run.events_path.write_text(encode_event(event))
    assert chosen_steps(run) == chosen


def test_an_answer_of_a_checkpoint_is_compared_there_and_in_the_middle_before_it(private_home: Path) -> None:
    run = make_run(10, 15, 20, 30)
    assert chosen_steps(run, 20) == [10, 20]
    assert chosen_steps(run, 10) == [10]
    request = AttributionRequest(run.id, ({"role": "user", "content": "q"},), "yes", step=12)
    with pytest.raises(UserError, match=r"^The checkpoint of step 12 is not kept in run "):
        attribution_job(request)


def test_the_wanted_answer_differs_from_the_answer(private_home: Path) -> None:
    run = make_run(5)
    request = AttributionRequest(run.id, ({"role": "user", "content": "q"},), "yes", " yes\n")
    with pytest.raises(UserError, match=r"^The wanted answer is the answer that was given\."):
        attribution_job(request)


def test_a_result_is_the_same_after_json() -> None:
    row = AttributedRow("rows.jsonl", 3, 1.0, "q", "an answer", ((3, 9),))
    found = Attribution("a", "w", "b", (row,), (replace(row, score=-0.5),), 1, (15, 30), 300, 400)
    assert Attribution.from_dict(json.loads(json.dumps(found.to_dict()))) == found
