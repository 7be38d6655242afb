"""Learning from comparisons: the answers come apart, and a kill changes nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from core.runs.record.events import EvalEvent
from core.runs.record.store import Run

from . import workers as e2e
from .workers import Workers

STEPS = 24
AREAS = ("billing", "login", "printer", "network")


def write_rows(path: Path, objective: str, count: int, seed: int) -> Path:
    """The better answer names the area of the question, the worse one another."""
    dice = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            area, other = dice.sample(AREAS, 2)
            row: dict[str, Any] = {"prompt": f"ticket {1000 * seed + number} {area} " + "please " * dice.randint(0, 6)}
            better, worse = f"the area is {area}", f"it is not known, perhaps {other}"
            if objective == "kto":
                row |= {"completion": better if number % 2 else worse, "label": bool(number % 2)}
            else:
                row |= {"chosen": better, "rejected": worse}
            file.write(json.dumps(row) + "\n")
    return path


def start(
    workers: Workers, objective: str, method: str = "qlora", variables: dict[str, str] | None = None, **train: Any
) -> Run:
    rate = 5e-3 if method == "qlora" else 1e-3
    return workers.start(
        objective,
        variables,
        data={
            "train": str(write_rows(workers.directory / f"{objective}.jsonl", objective, 40, seed=1)),
            "eval": str(write_rows(workers.directory / f"{objective}-eval.jsonl", objective, 8, seed=2)),
        },
        method={"name": method, "dropout": 0.1 if method == "qlora" else 0.0},
        train={"objective": objective, "max_steps": STEPS, "learning_rate": rate, "warmup": 0, **train},
        eval={"every_steps": 12, "exact_match": False, "baseline": True},
        checkpoint={"every_steps": 4},
    )


@pytest.mark.parametrize(
    "objective", ["dpo", *(pytest.param(each, marks=pytest.mark.long) for each in ("kto", "orpo"))]
)
def test_answers_come_apart_and_a_kill_changes_nothing(workers: Workers, objective: str) -> None:
    reference = start(workers, objective)
    e2e.finish(reference)
    done = e2e.steps(reference)
    last = [step.reward_accuracy for step in done[-4:] if step.reward_accuracy is not None]
    assert len(last) == 4
    assert sum(last) / 4 > 0.85
    margins = [step.reward_margin for step in done[-4:] if step.reward_margin is not None]
    first = done[0].reward_margin or 0.0
    # A reward of ORPO is a mean over tokens.
    assert sum(margins) / len(margins) > first + (0.01 if objective == "orpo" else 0.05)
    baseline, *_, measured = e2e.only(EvalEvent, reference)
    assert measured.loss < baseline.loss
    assert measured.perplexity is None
    assert measured.reward_accuracy is not None
    assert measured.reward_accuracy > 0.7
    if objective == "dpo":
        assert baseline.loss == pytest.approx(0.6931, abs=1e-3), "at the beginning the model is its own reference"
        assert baseline.reward_margin == pytest.approx(0.0, abs=1e-3)

    run = start(workers, objective, variables=e2e.held_at(14))
    e2e.kill_and_finish(workers, run, 14)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    told = {step.step: (step.loss, step.reward_margin) for step in e2e.steps(run)}
    assert told == {step.step: (step.loss, step.reward_margin) for step in done}


@pytest.mark.long
def test_the_reference_of_whole_models_is_the_untouched_base(workers: Workers) -> None:
    """Measured from the weights that a checkpoint puts back, the losses after it would begin at log 2 again."""
    options: dict[str, Any] = {"precision": "bf16", "max_steps": 12, "beta": 0.5}
    reference = start(workers, "dpo", "full", **options)
    e2e.finish(reference)
    done = e2e.steps(reference)
    assert done[0].loss == pytest.approx(math.log(2), abs=2e-2), "to the rounding of bf16 in sums over answers"
    assert done[0].reward_margin == pytest.approx(0.0, abs=2e-2)
    assert min(step.reward_margin or 0.0 for step in done[-4:]) > 0.3
    assert max(step.loss for step in done[-4:]) < 0.6

    run = start(workers, "dpo", "full", e2e.held_at(5), **options)
    e2e.kill_and_finish(workers, run, 5)
    weights = "model.safetensors"
    assert (run.model_path / weights).read_bytes() == (reference.model_path / weights).read_bytes()
    told = {step.step: (step.loss, step.reward_margin) for step in e2e.steps(run)}
    assert told == {step.step: (step.loss, step.reward_margin) for step in done}


def test_rows_of_another_kind_are_refused_with_both_names(workers: Workers) -> None:
    run = workers.start("mixed", train={"objective": "dpo", "max_steps": 2})
    reason = e2e.failure(run).reason
    assert "rows of the format messages" in reason
    assert "train.objective is dpo" in reason
