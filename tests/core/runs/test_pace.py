"""Pace of earlier runs: only of comparable ones, and none without figures."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from core.config.derived import step_count
from core.config.schema import Config
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.memory.rows import rows_of_tokens
from core.models.architecture.families import read_architecture
from core.runs.outlook import estimate as pace_module
from core.runs.outlook.estimate import PaceBook, RunPace, estimate, limited
from core.runs.outlook.forecast import rough_seconds
from core.runs.record.events import (
    CheckpointEvent,
    EvalEvent,
    Event,
    GovernorEvent,
    HardwareEvent,
    PhaseEvent,
    StepEvent,
    encode_event,
)
from core.runs.record.history import RunHistory, read_history
from core.runs.record.store import Run, create_run, list_runs
from tests.cases import cases
from tests.core.models.architecture import published
from tests.measured_here import bounded_here

__all__ = ["bounded_here"]


def config_of(base: str = "some-model", **sections: Any) -> Config:
    return Config.model_validate({"model": {"base": base}, "data": {"train": "x"}, **sections})


def step(number: int, tokens: int = 100, seconds: float = 2.0) -> StepEvent:
    return StepEvent(
        t=float(number),
        step=number,
        epoch=0.0,
        loss=1.0,
        lr=1e-4,
        grad_norm=1.0,
        tokens=tokens,
        supervised_tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
    )


def record(config: Config, events: list[Event]) -> str:
    run = create_run(config, "earlier")
    run.events_path.write_text("".join(map(encode_event, events)))
    return run.id


def test_the_newest_run_alike_gives_the_pace(private_home: Path) -> None:
    record(config_of(), [step(number, seconds=50.0) for number in range(1, 6)])
    energy = HardwareEvent(t=6.0, devices=[], energy_wh=2.0)
    newest = record(config_of(), [*(step(number) for number in range(1, 6)), energy])
    pace = PaceBook().pace(config_of(train={"epochs": 7}))
    assert pace is not None
    assert pace.run == newest
    assert (pace.tokens_per_second, pace.seconds_per_step) == (50.0, 2.0)
    assert pace.watt_hours_per_token == pytest.approx(2.0 / 500)
    assert pace.watt_hours_per_second == pytest.approx(2.0 / 10)
    assert pace.rows_per_step == config_of().train.batch_size


@cases(
    "other",
    [
        config_of("another-model"),
        config_of(method={"name": "lora"}),
        config_of(memory={"gradient_checkpointing": "on"}),
        config_of(hardware={"device": "cpu"}),
    ],
)
def test_runs_unlike_it_say_nothing(private_home: Path, other: Config) -> None:
    record(other, [step(number) for number in range(1, 6)])
    assert PaceBook().pace(config_of()) is None


def test_a_run_of_too_few_steps_or_without_a_record_says_nothing(private_home: Path) -> None:
    older = record(config_of(), [step(number) for number in range(1, 6)])
    record(config_of(), [step(1)])
    create_run(config_of(), "silent")
    broken = create_run(config_of(), "broken")
    broken.config_path.write_text("not = [toml")
    pace = PaceBook().pace(config_of())
    assert pace is not None
    assert pace.run == older
    assert pace.watt_hours_per_token is None


def test_without_runs_there_is_no_pace(private_home: Path) -> None:
    assert PaceBook().pace(config_of()) is None


def test_a_book_looks_at_no_directory_again_and_reads_each_record_once(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = record(config_of(), [step(number) for number in range(1, 6)])
    record(config_of("another-model"), [step(number) for number in range(1, 6)])
    book = PaceBook()
    newer = record(config_of(), [step(number) for number in range(1, 6)])
    read: list[str] = []

    def reading(run: Run) -> RunHistory:
        read.append(run.id)
        return read_history(run)

    monkeypatch.setattr(pace_module, "read_history", reading)
    monkeypatch.setattr(pace_module, "list_runs", lambda: pytest.fail("the runs are listed again"))
    for _ in range(3):
        pace = book.pace(config_of(train={"epochs": 2}))
        assert pace is not None
        assert pace.run == wanted
    assert read == [wanted]
    monkeypatch.setattr(pace_module, "list_runs", list_runs)
    later = PaceBook().pace(config_of())
    assert later is not None
    assert later.run == newer


@cases(
    ("train", "count", "steps", "seconds", "watt_hours"),
    [
        ({"batch_size": 8, "epochs": 2.0}, 100, 26, 52.0, 5.2),
        ({"batch_size": 16, "epochs": 1.0}, 100, 7, 28.0, 2.8),
        ({"batch_size": 8, "max_steps": 30}, None, 30, 60.0, 6.0),
    ],
)
def test_rows_that_are_only_counted_last_as_long_as_those_of_the_earlier_run(
    train: dict[str, Any], count: int | None, steps: int, seconds: float, watt_hours: float
) -> None:
    pace = RunPace("earlier", 50.0, 2.0, None, rows_per_step=8, watt_hours_per_second=0.1)
    guess = estimate(config_of(train=train), None, pace, count)
    assert guess is not None
    assert (guess.run, guess.steps) == ("earlier", steps)
    assert guess.seconds == pytest.approx(seconds)
    assert guess.watt_hours == pytest.approx(watt_hours)


def test_without_rows_epochs_tell_no_time() -> None:
    assert estimate(config_of(), None, RunPace("earlier", 50.0, 2.0, None)) is None


def test_steps_are_known_without_rows_only_where_they_are_named() -> None:
    assert step_count(config_of(), None) is None
    assert step_count(config_of(train={"max_steps": 7}), None) == 7
    assert step_count(config_of(train={"epochs": 1.5, "batch_size": 4}), 10) == 5


def test_rows_that_are_held_out_take_no_time() -> None:
    pace = RunPace("earlier", 100.0, 2.0, None)
    rows = rows_of_tokens([10] * 100, 500)
    whole, rest = (
        estimate(config_of(data={"train": "x", "eval_share": share}, train={"batch_size": 1}), rows, pace)
        for share in (0.0, 0.2)
    )
    assert whole is not None
    assert rest is not None
    assert (whole.steps, rest.steps) == (100, 80)
    assert rest.seconds == pytest.approx(0.8 * whole.seconds)


def test_a_guess_has_the_right_order_of_magnitude() -> None:
    # Measured: a model of 135 million with 320 tokens a second on two cores.
    config = config_of(train={"batch_size": 4})
    plan = make_plan(read_architecture(published.SMOLLM2_135M, "m"), config, Machine("cpu"))
    guess = 10 * 4 * 100 / rough_seconds(config, plan, 10, 100.0)
    assert 160 / 4 < guess / len(os.sched_getaffinity(0)) < 160 * 4


def test_rests_of_the_governor_are_told_from_work(private_home: Path) -> None:
    def duty(action: str, share: float) -> Event:
        return GovernorEvent(t=2.5, action=action, cause="plan", duty=share)

    events: list[Event] = [step(1), step(2), duty("slow", 0.5), step(3, seconds=4.0), duty("full", 1.0), step(4)]
    record(config_of(), events)
    pace = PaceBook().pace(config_of())
    assert pace is not None
    assert pace.work_share == pytest.approx(8 / 10)
    found = estimate(config_of(train={"max_steps": 8}), None, pace)
    assert found is not None
    assert found.seconds == pytest.approx(20.0)
    assert found.work_share == pace.work_share


def evaluation(moment: float, at: int, seconds: float) -> list[Event]:
    """An evaluation of so many seconds."""
    measured = EvalEvent(t=moment + seconds, step=at, loss=1.0, perplexity=2.7, seconds=seconds)
    return [PhaseEvent(t=moment, name="evaluating"), measured, PhaseEvent(t=moment + seconds, name="training")]


HELD_OUT: dict[str, Any] = {"data": {"train": "/rows", "eval_share": 0.1}}
EVALUATED: dict[str, Any] = {"data": {"train": "/rows", "eval_share": 0.1}, "eval": {"every_steps": 2}}


@cases(
    ("sections", "evaluations"),
    [
        ({"train": {"max_steps": 8}, **EVALUATED}, 4),
        ({"train": {"max_steps": 9}, **EVALUATED}, 5),
        ({"train": {"max_steps": 8}, **HELD_OUT}, 1),
        ({"train": {"max_steps": 8}, **HELD_OUT, "eval": {"baseline": True, "every_steps": 4, "patience": 2}}, 3),
        ({"train": {"epochs": 2, "batch_size": 10}, **HELD_OUT, "eval": {"every_epochs": 1}}, 2),
        ({"train": {"max_steps": 8}}, 0),
        ({"train": {"max_steps": 8}, **HELD_OUT, "eval": {"exact_match": True}}, 0),
        ({"train": {"max_steps": 8}, "data": {"train": "/rows", "eval_share": 0.2}}, 0),
    ],
)
def test_evaluations_that_measure_the_same_count_as_they_took(
    private_home: Path, sections: dict[str, Any], evaluations: int
) -> None:
    saved = CheckpointEvent(t=20.0, step=4, path="checkpoints/step-00000004", bytes=1, seconds=0.4)
    record(config_of(**EVALUATED), [*map(step, range(1, 5)), *evaluation(10.0, 4, 7.0), saved])
    config = config_of(**sections)
    pace = PaceBook().pace(config)
    assert pace is not None
    found = estimate(config, None, pace, 40)
    assert found is not None
    rows = config.train.batch_size / pace.rows_per_step
    checkpoints = math.ceil(found.steps / math.ceil(found.steps / 10))
    assert found.between_seconds == pytest.approx(evaluations * 7.0 + (checkpoints + 0.25) * 0.4)
    assert found.seconds == pytest.approx(found.steps * 2.0 * rows + found.between_seconds)
    assert found.full_speed_seconds == pytest.approx(found.seconds)


def test_an_early_end_leaves_evaluations_out_as_well(private_home: Path) -> None:
    record(config_of(**EVALUATED), [*map(step, range(1, 5)), *evaluation(10.0, 4, 7.0)])
    config = config_of(train={"max_steps": 8, "max_hours": 22 / 3600}, **EVALUATED)
    pace = PaceBook().pace(config)
    assert pace is not None
    found = estimate(config, None, pace)
    assert found is not None
    assert (found.seconds, found.between_seconds) == (44.0, 28.0)
    cut = limited(config, found)
    assert cut.early_end is not None
    assert (cut.seconds, cut.between_seconds) == pytest.approx((22.0, 14.0))
