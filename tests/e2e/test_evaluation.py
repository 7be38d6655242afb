"""Evaluations of real workers: the best step kept, the end that comes early, and samples."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from core.runs.control.client import ControlClient
from core.runs.record.events import CheckpointEvent, ControlEvent, EvalEvent, PhaseEvent, SampleEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import checkpoint_name, verify_checkpoint
from tests.waiting import wait_for

from . import workers as e2e
from .workers import Workers

#: Steps so long that the held-out loss soon rises.
RISING: dict[str, Any] = {
    "train": {"max_steps": 40, "learning_rate": 0.05, "warmup": 0.0, "scheduler": "constant"},
    "eval": {"every_steps": 2, "exact_match": False, "samples": 0, "patience": 4, "min_delta": 0.01},
    "checkpoint": {"every_steps": 3, "keep": 1, "middle": False, "final": "best"},
}


def measured(run: Run) -> list[tuple[int, float]]:
    """Step and loss of each evaluation."""
    return [(event.step, event.loss) for event in e2e.only(EvalEvent, run)]


def test_the_best_step_is_kept_and_a_run_that_gets_no_better_ends_early(workers: Workers) -> None:
    run = workers.finished("rising", **RISING)
    losses = measured(run)
    best = min(losses, key=lambda item: item[1])[0]
    end = e2e.ending(run)
    assert end.step < 40
    assert best < end.step
    assert (end.best, end.step) == (best, losses[-1][0])
    assert end.reason == f"no lower held-out loss in 4 evaluations; the adapter is that of step {best}, the best one"
    assert run.state().reason == end.reason
    kept = verify_checkpoint(run.checkpoints_path / checkpoint_name(best))
    assert e2e.adapter_bytes(run) == (kept.adapter_path / "adapter_model.safetensors").read_bytes()
    names = {checkpoint_name(step) for step in (best, end.step)}
    good = kept.path.parent / checkpoint_name(end.step - 1)
    assert {path.name for path in run.checkpoints_path.iterdir()} - {good.name} == names
    assert best in [event.step for event in e2e.only(CheckpointEvent, run)]
    assert not e2e.only(SampleEvent, run)
    assert f"best at step {best}" in read_history(run).log[-1].text

    cut = workers.held("cut", best + 1, **RISING)
    e2e.kill(cut)
    workers.resume(cut, e2e.held_at(end.step - 1))
    e2e.stop_at(cut, end.step - 1)
    workers.complete(cut)
    assert dict(measured(cut)) == dict(losses)
    assert (e2e.ending(cut).step, e2e.ending(cut).reason) == (end.step, end.reason)
    assert e2e.adapter_bytes(cut) == e2e.adapter_bytes(run)


@pytest.mark.long
def test_a_best_checkpoint_that_was_damaged_gives_way_to_the_last_step(workers: Workers) -> None:
    whole = workers.finished("whole", **RISING)
    best = e2e.ending(whole).best
    assert best is not None
    run = workers.start("damaged", **RISING)
    wait_for(lambda: measured(run)[-1:] >= [(best + 2, 0.0)], e2e.PATIENCE, "a loss after the best one", interval=0.002)
    weights = run.checkpoints_path / checkpoint_name(best) / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    e2e.finish(run)
    end = e2e.ending(run)
    assert end.best == best
    assert "best_missing" in e2e.notice_codes(run)
    assert end.reason == "no lower held-out loss in 4 evaluations"
    last = verify_checkpoint(run.checkpoints_path / checkpoint_name(end.step))
    assert e2e.adapter_bytes(run) == (last.adapter_path / "adapter_model.safetensors").read_bytes()


def test_it_is_measured_by_epochs_and_the_held_out_questions_are_answered(workers: Workers) -> None:
    run = workers.finished(
        "epochs",
        train={"max_steps": 17},
        eval={"every_steps": None, "every_epochs": 0.5, "exact_match": False, "samples": 2, "baseline": True},
    )
    assert [event.step for event in e2e.only(EvalEvent, run)] == [0, 5, 10, 15, 17]
    assert all(event.exact_match is event.valid_json is None for event in e2e.only(EvalEvent, run))
    samples = e2e.only(SampleEvent, run)
    assert [(event.step, event.source) for event in samples] == [
        (step, f"step-{step}" if step else "base") for step in (0, 5, 10, 15, 17) for _ in range(2)
    ]
    asked = [json.loads(line)["messages"][0]["content"] for line in workers.eval_data.read_text().splitlines()]
    assert [event.prompt for event in samples] == asked[:2] * 5
    wanted = [json.loads(line)["messages"][-1]["content"] for line in workers.eval_data.read_text().splitlines()]
    assert [event.expected for event in samples] == wanted[:2] * 5
    assert all(event.exact_match in (True, False) for event in samples)
    assert len({event.text for event in samples}) > 2, "the model has learned nothing that can be seen"


@pytest.mark.long
def test_commands_are_carried_out_while_samples_are_written_and_a_stop_ends_them(workers: Workers) -> None:
    prompts = workers.directory / "many.jsonl"
    rows = [{"prompt": "ticket " + "network " * number} for number in range(30)]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    run = workers.start(
        "long",
        eval={"every_steps": 3, "exact_match": False, "prompts": str(prompts)},
        checkpoint={"every_steps": 1000},
        chat={"max_new_tokens": 250},
    )

    def writes() -> bool:
        told = [
            event for event in e2e.only(PhaseEvent, run) if event.name == "evaluating" and event.detail == "samples"
        ]
        return bool(told) and bool(e2e.only(EvalEvent, run)) and told[-1].t > e2e.only(EvalEvent, run)[0].t

    wait_for(writes, e2e.PATIENCE, "the samples")
    client = ControlClient(run)
    assert client.request("pause") == {"state": "paused", "step": 3}
    assert client.request("set", **{"train.learning_rate": 1e-4, "eval.every_steps": 7})["step"] == 3
    assert client.request("checkpoint") == {"step": 3}
    assert client.request("resume")["step"] == 3
    assert client.request("stop")["state"] == "stopping"
    assert e2e.exit_code(run) == 3
    assert [event.step for event in e2e.steps(run)] == [1, 2, 3], "it went on after the stop"
    assert [event.step for event in e2e.only(EvalEvent, run)] == [3]
    assert {event.source for event in e2e.only(SampleEvent, run)} == {"base"}
    told = [(event.command, event.sender) for event in e2e.only(ControlEvent, run)]
    assert told == [(name, "socket") for name in ("pause", "set", "checkpoint", "resume", "stop")]
    assert math.isfinite(e2e.only(EvalEvent, run)[0].loss)
