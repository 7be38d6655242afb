"""The estimate of a run: an earlier run's pace where there is one, else the step time of the memory plan."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.memory.calibration import Calibration
from core.memory.cards import Cards
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.memory.rows import Rows, rows_of_tokens
from core.memory.strategy import chosen_strategy
from core.models.architecture.architecture import read_architecture
from core.runs.outlook import estimate as pace_module
from core.runs.outlook.estimate import (
    Estimate,
    NoEstimate,
    PaceBook,
    PlannedRun,
    RunPace,
    estimate,
    estimate_words,
    expected,
    limited,
    tell_early_end,
)
from core.runs.outlook.forecast import rough_seconds
from core.runs.outlook.time_left import Schedule
from core.runs.record import events
from core.runs.record.history import RunHistory, read_history
from core.runs.record.store import Run, create_run, list_runs
from tests.cases import cases
from tests.core.models.architecture import published
from tests.core.runs.helpers import step_event, there, write_events
from tests.measured_here import bounded_here

__all__ = ["bounded_here"]

CARD = Machine("cuda", 24_000_000_000, device="NVIDIA GeForce RTX 4090", power_limit_w=450.0)
MEASURED = Calibration("a CPU", 10**9, 0.0, "2.13", "2026-01-31", matrix_rate=1e12)


def config_of(base: str = "m", **sections: Any) -> Config:
    return Config.model_validate({"model": {"base": base}, "data": {"train": "x"}, **sections})


def planned(config: Config, machine: Machine = CARD, rows: Rows | None = None, cards: int = 1) -> PlannedRun:
    architecture = read_architecture(published.LLAMA_3_8B, "m")
    return PlannedRun(chosen_strategy(architecture, config, machine, rows, cards=Cards(cards)), machine, rows)


def guess(config: Config, plan: PlannedRun | None = None, pace: RunPace | None = None, count: int = 1600) -> Estimate:
    """The estimate of a run; it is only planned if a plan is given."""
    found = expected(config, pace, never if plan is None else lambda: plan, count=count)
    assert isinstance(found, Estimate)
    return found


def never() -> PlannedRun:
    raise AssertionError("planned where it is not needed")


def test_without_a_run_of_its_kind_the_plan_shows_the_time_and_the_power_limit_the_energy() -> None:
    config, rows = config_of(), rows_of_tokens([500] * 300, 150_000)
    plan = planned(config, rows=rows)
    found = guess(config, plan)
    assert (found.by, found.run, found.steps, found.assumed) == ("plan", "", 200, ())
    assert found.seconds == pytest.approx(200 * plan.chosen.plan.step.seconds)
    assert found.watt_hours == pytest.approx(found.seconds * 450.0 / 3600)
    # 200 steps of 8 rows at the plan's 2,240 tokens a second on this card (docs/performance.md).
    assert found.seconds == pytest.approx(200 * 8 * 500 / 2240, rel=0.8)
    assert estimate_words(found).basis == "by the plan (no run of this kind yet)"


def test_what_the_plan_assumes_is_reported() -> None:
    config = config_of(train={"max_length": 1000})
    found = guess(config, planned(config, Machine("cuda", 24_000_000_000)), count=8)
    assert found.watt_hours is None, "no watts are known of this card"
    what = "rows of 1000 tokens and the speed of a common card assumed"
    assert estimate_words(found).basis == f"by the plan (no run of this kind yet; {what})"
    rows = rows_of_tokens([500] * 10, 5000)
    elsewhere = Machine("cuda", 24_000_000_000, elsewhere=True)
    found = guess(config, planned(config, elsewhere, rows), count=8)
    said = "by the plan (for a card that is not here; the speed of a common card assumed)"
    assert (found.elsewhere, estimate_words(found).basis) == (True, said)


@cases(
    ("limits", "seconds", "watt_hours", "step", "said"),
    [
        ({"max_hours": 6}, 21_600, 400, 1200, "ends after 6 h by train.max_hours, at about step 1,200 of 3,000"),
        ({"max_energy_wh": 250}, 13_500, 250, 750, "ends after 250 Wh by train.max_energy_wh, at about step 750 of"),
        ({"max_hours": 6, "max_energy_wh": 250}, 13_500, 250, 750, "by train.max_energy_wh, at about step 750 of 3"),
        ({"max_hours": 0.001}, 3.6, 400 / 6000, 1, "ends after 0.001 h by train.max_hours, at about step 1 of 3,000"),
        ({"max_hours": 15, "max_energy_wh": 1000}, 54_000, 1000, None, ""),
        ({}, 54_000, 1000, None, ""),
    ],
)
def test_an_estimate_goes_as_far_as_the_limits_of_the_run(
    limits: dict[str, float], seconds: float, watt_hours: float, step: int | None, said: str
) -> None:
    pace = RunPace("earlier", 50.0, 18.0, None, rows_per_step=8, watt_hours_per_second=1000 / 54_000)
    found = guess(config_of(train=limits), pace=pace, count=24_000)
    assert found.seconds == pytest.approx(seconds)
    assert found.watt_hours == pytest.approx(watt_hours)
    assert (found.by, found.run, found.steps) == ("pace", "earlier", 3000)
    other = guess(config_of(train={"batch_size": 16}), pace=pace, count=24_000)
    assert (other.steps, other.seconds) == (1500, 54_000), "a row takes as long as one of the earlier run"
    assert (found.early_end.step if found.early_end is not None else None) == step
    assert estimate_words(found).basis == "at the pace of earlier"
    assert said in ("" if found.early_end is None else tell_early_end(found.early_end))


def test_energy_that_the_plan_takes_at_most_ends_nothing_for_certain() -> None:
    rows = rows_of_tokens([500] * 300, 150_000)
    plan = planned(config_of(), rows=rows)
    whole = guess(config_of(), plan)
    found = guess(config_of(train={"max_energy_wh": 1}), plan)
    assert (found.seconds, found.watt_hours) == (whole.seconds, 1)
    assert found.early_end is not None
    assert tell_early_end(found.early_end) == "may end before its last step, after 1 Wh by train.max_energy_wh"


def test_the_steps_that_take_longer_count_more() -> None:
    usual, for_a_file = config_of(), config_of(method={"train_for": "q4_0", "name": "lora"})
    one, other = (planned(config, rows=rows_of_tokens([500] * 10, 5000)) for config in (usual, for_a_file))
    found, longer = guess(usual, one), guess(for_a_file, other)
    assert longer.seconds / other.chosen.plan.step.seconds > found.seconds / one.chosen.plan.step.seconds


def test_every_card_takes_its_power_for_its_part_of_the_time() -> None:
    config, rows = config_of(), rows_of_tokens([500] * 300, 150_000)
    one, two = (guess(config, planned(config, rows=rows, cards=cards)) for cards in (1, 2))
    assert one.watt_hours is not None
    assert two.watt_hours == pytest.approx(2 * two.seconds * 450.0 / 3600)
    assert two.seconds < one.seconds


def test_a_cpu_has_an_estimate_only_where_it_has_been_measured() -> None:
    config, rows = config_of(), rows_of_tokens([500] * 300, 150_000)
    cpu = Machine("cpu", 64_000_000_000, device="a CPU")
    found = expected(config, None, lambda: planned(config, cpu, rows), count=8)
    assert found == NoEstimate("the speed of this CPU is not known to the plan")
    machine = Machine("cpu", 64_000_000_000, device="a CPU", calibration=MEASURED)
    measured = guess(config, planned(config, machine, rows), count=8)
    assert (measured.by, measured.watt_hours, measured.assumed) == ("plan", None, ())


def test_without_a_number_of_steps_nothing_is_planned_and_a_plan_that_cannot_be_made_says_why() -> None:
    for pace in (None, RunPace("earlier", 50.0, 2.0, None)):
        assert expected(config_of(), pace, never) == NoEstimate("the number of its rows is not known")
    assert expected(config_of(), None, lambda: NoEstimate("it is too hot"), count=8) == NoEstimate("it is too hot")


def step(number: int, **changes: Any) -> events.StepEvent:
    return step_event(number, t=float(number), epoch=0.0, **changes)


def record(config: Config, told: Iterable[events.Event] = tuple(map(step, range(1, 6)))) -> str:
    """A recorded run, of five steps unless events are given."""
    run = create_run(config, "earlier")
    write_events(run, *told)
    return run.id


def pace_of(config: Config) -> RunPace:
    return there(PaceBook().pace(config))


def at_pace(config: Config, pace: RunPace, rows: Rows | None = None, count: int | None = None) -> Estimate:
    return there(estimate(config, rows, pace, count))


def test_the_pace_is_the_median_of_the_runs_alike_by_their_steps(private_home: Path) -> None:
    record(config_of(), [step(number, seconds=50.0) for number in range(1, 5)])
    record(config_of(train={"batch_size": 1}), [step(number, seconds=70.0) for number in range(1, 90)])
    energy = events.HardwareEvent(t=6.0, devices=[], energy_wh=2.0)
    newest = record(config_of(), [*(step(number) for number in range(1, 6)), energy])
    pace = pace_of(config_of(train={"epochs": 7}))
    assert (pace.run, pace.runs) == (newest, 2)
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
    record(other)
    assert PaceBook().pace(config_of()) is None


def test_a_run_of_too_few_steps_or_without_a_record_says_nothing(private_home: Path) -> None:
    older = record(config_of())
    record(config_of(), [step(1)])
    create_run(config_of(), "silent")
    broken = create_run(config_of(), "broken")
    broken.config_path.write_text("not = [toml")
    pace = pace_of(config_of())
    assert pace.run == older
    assert pace.watt_hours_per_token is None


def test_a_book_lists_and_reads_runs_once(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = record(config_of())
    record(config_of("another-model"))
    book = PaceBook()
    newer = record(config_of())
    read: list[str] = []

    def reading(run: Run) -> RunHistory:
        read.append(run.id)
        return read_history(run)

    monkeypatch.setattr(pace_module, "read_history", reading)
    monkeypatch.setattr(pace_module, "list_runs", lambda: pytest.fail("the runs are listed again"))
    for _ in range(3):
        pace = there(book.pace(config_of(train={"epochs": 2})))
        assert pace.run == wanted
    assert read == [wanted]
    monkeypatch.setattr(pace_module, "list_runs", list_runs)
    assert pace_of(config_of()).run == newer


def test_rows_that_are_held_out_take_no_time() -> None:
    pace = RunPace("earlier", 100.0, 2.0, None)
    rows = rows_of_tokens([10] * 100, 500)
    whole, rest = (
        at_pace(config_of(data={"train": "x", "eval_share": share}, train={"batch_size": 1}), pace, rows)
        for share in (0.0, 0.2)
    )
    assert (whole.steps, rest.steps) == (100, 80)
    assert rest.seconds - rest.between_seconds == pytest.approx(0.8 * whole.seconds)


def test_a_guess_has_the_right_order_of_magnitude() -> None:
    # Measured: a model of 135 million with 320 tokens a second on two cores.
    config = config_of(train={"batch_size": 4})
    plan = make_plan(read_architecture(published.SMOLLM2_135M, "m"), config, Machine("cpu"))
    rate = 10 * 4 * 100 / rough_seconds(config, plan, 10, 100.0)
    assert 160 / 4 < rate / len(os.sched_getaffinity(0)) < 160 * 4


def test_rests_of_the_governor_are_distinguished_from_work(private_home: Path) -> None:
    def duty(action: str, share: float) -> events.Event:
        return events.GovernorEvent(t=2.5, action=action, cause="plan", duty=share)

    record(config_of(), [step(1), step(2), duty("slow", 0.5), step(3, seconds=4.0), duty("full", 1.0), step(4)])
    pace = pace_of(config_of())
    assert pace.work_share == pytest.approx(8 / 10)
    found = at_pace(config_of(train={"max_steps": 8}), pace)
    assert found.seconds == pytest.approx(20.0)
    assert found.work_share == pace.work_share


def evaluation(moment: float, at: int, seconds: float) -> list[events.Event]:
    """An evaluation of so many seconds."""
    measured = events.EvalEvent(t=moment + seconds, step=at, loss=1.0, perplexity=2.7, seconds=seconds)
    begun, after = (events.PhaseEvent(t=t, name=name) for t, name in ((moment, "evaluating"), (measured.t, "training")))
    return [begun, measured, after]


#: 36 rows to train on and 4 held out, of 12.5 tokens each: the pace of the steps.
DATA = events.DataEvent(
    t=0.0,
    rows=36,
    used=36,
    dropped={},
    tokens=450,
    supervised_tokens=225,
    longest=20,
    held_out_rows=4,
    held_out_tokens=50,
)
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
    ],
)
def test_equal_evaluations_take_as_long(private_home: Path, sections: dict[str, Any], evaluations: int) -> None:
    saved = events.CheckpointEvent(t=20.0, step=4, path="checkpoints/step-00000004", bytes=1, seconds=0.4)
    record(config_of(**EVALUATED), [DATA, *map(step, range(1, 5)), *evaluation(10.0, 4, 7.0), saved])
    config = config_of(**sections)
    pace = pace_of(config)
    found = at_pace(config, pace, count=36)
    rows = config.train.batch_size / pace.rows_per_step
    checkpoints = math.ceil(found.steps / math.ceil(found.steps / 10))
    parts = Schedule(measures=True, samples=3, probe=True).evaluation_tokens(4, 50.0, 6.25)
    first = 7.0 * (1 - parts["loss"] / sum(parts.values())) if evaluations and not config.eval.baseline else 0.0
    assert found.evaluations == evaluations
    assert found.evaluation_seconds == pytest.approx(evaluations * 7.0 + first), "and a first look without rows"
    assert found.between_seconds == pytest.approx(found.evaluation_seconds + (checkpoints + 0.25) * 0.4)
    assert found.seconds == pytest.approx(found.steps * 2.0 * rows + found.between_seconds)
    assert found.full_speed_seconds == pytest.approx(found.seconds)


def test_an_early_end_leaves_evaluations_out_as_well(private_home: Path) -> None:
    asked = {**EVALUATED, "eval": {"every_steps": 2, "probe": False, "samples": 0}}
    record(config_of(**asked), [DATA, *map(step, range(1, 5)), *evaluation(10.0, 4, 7.0)])
    config = config_of(train={"max_steps": 8, "max_hours": 22 / 3600}, **asked)
    found = at_pace(config, pace_of(config), count=36)
    assert (found.seconds, found.between_seconds) == pytest.approx((44.0, 28.0))
    cut = limited(config, found)
    assert cut.early_end is not None
    assert (cut.seconds, cut.between_seconds, cut.evaluation_seconds) == pytest.approx((22.0, 14.0, 14.0))
