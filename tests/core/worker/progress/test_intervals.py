"""Intervals of evaluations and checkpoints, as the estimate of the time left counts them too."""

from __future__ import annotations

from typing import Any

from core.config.schema import CheckpointSection, Config, DataSection, EvalSection
from core.runs.schedule import Schedule
from core.worker.progress.state import Intervals
from tests.cases import cases
from tests.core.worker.steps.stepper import make_state


def due(steps: int, total: int, per_epoch: int, evaluation: dict[str, Any], saving: dict[str, Any]) -> Any:
    config = Config(
        data=DataSection(train="a", eval_share=0.1),
        eval=EvalSection(**evaluation),
        checkpoint=CheckpointSection(**saving),
    )
    found = []
    state = make_state()
    state.total_steps = total
    intervals = Intervals(config, state, per_epoch)
    for state.step in range(1, steps + 1):
        found.append((intervals.is_evaluation_due, intervals.is_checkpoint_due))
    return found


@cases(
    ("evaluation", "saving"),
    [
        ({"every_steps": 4}, {"every_steps": 3}),
        ({"every_epochs": 0.25}, {}),
        ({"every_epochs": 1 / 3}, {"every_steps": 1}),
        ({}, {}),
    ],
)
def test_the_worker_and_the_estimate_count_alike(evaluation: dict[str, Any], saving: dict[str, Any]) -> None:
    total, per_epoch = 47, 15
    values = {f"eval.{name}": value for name, value in evaluation.items()}
    values |= {f"checkpoint.{name}": value for name, value in saving.items()} | {"data.eval_share": 0.1}
    schedule = Schedule.of(values)
    told = due(total, total, per_epoch, evaluation, saving)
    for step in range(1, total + 1):
        assert schedule.evaluations_by(step, per_epoch) == sum(is_due for is_due, _ in told[:step])
        assert schedule.checkpoints_by(step, total) == sum(is_due for _, is_due in told[:step])
    if not evaluation:
        assert not any(is_due for is_due, _ in told)
    if not saving:
        assert sum(is_due for _, is_due in told) == 9  # one in five steps
