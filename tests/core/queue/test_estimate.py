"""Estimates of runs that wait, on a card that is only described, with the real tokenizer of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.config.schema import Config
from core.hardware.snapshot import Device
from core.queue import estimate
from core.queue.estimate import Estimator, total_of
from core.runs.outlook.estimate import Estimate, NoEstimate
from core.runs.record.store import create_run
from tests.core.runs.helpers import step_event, write_events

CARD = Device(
    index=0, kind="cuda", name="NVIDIA GeForce RTX 4090", memory_used=23_000_000_000, memory_total=24_000_000_000,
    power_limit_w=450.0,
)  # fmt: skip


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [CARD])
    monkeypatch.setattr("core.hardware.torch_check.obstacle_here", lambda _gpu: None)


@pytest.fixture
def config(home: Path, tmp_path: Path, tiny_model_dir: Path) -> Config:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": "a row of some words " * 8}) + "\n" for _ in range(80)))
    sections = {"model": {"base": str(tiny_model_dir)}, "data": {"train": str(data)}, "train": {"batch_size": 8}}
    return Config.model_validate(sections)


@pytest.mark.usefixtures("card")
def test_rows_are_sampled_and_counted_and_the_card_is_planned_as_if_it_were_empty(config: Config) -> None:
    estimator = Estimator()
    found = estimator.estimate(config)
    assert isinstance(found, Estimate)
    assert (found.by, found.steps, found.assumed) == ("plan", 10, ())
    assert found.watt_hours == pytest.approx(found.seconds * 450.0 / 3600)
    longest = estimator.estimate(config.model_copy(update={"data": config.data.model_copy(update={"train": "gone"})}))
    assert longest == NoEstimate("the number of its rows is not known")
    planned = estimator._plan(config)
    assert not isinstance(planned, NoEstimate)
    assert planned.machine.limit_bytes == CARD.memory_total
    assert planned.rows is not None
    assert planned.rows.count == 80


@pytest.mark.usefixtures("card")
def test_rows_that_cannot_be_tokenized_are_assumed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "sample_lengths", lambda _: [])
    found = Estimator().estimate(config)
    assert isinstance(found, Estimate)
    assert found.assumed == ("rows of 512 tokens",), "as many as the model has positions"


@pytest.mark.usefixtures("card")
def test_a_measured_pace_comes_before_the_plan(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(config, "before")
    write_events(run, *(step_event(number, tokens=80, seconds=10.0) for number in range(1, 6)))
    estimator = Estimator()
    known = estimator.estimate(config)
    other = estimator.estimate(config.model_copy(update={"method": config.method.model_copy(update={"name": "lora"})}))
    assert isinstance(known, Estimate)
    assert (known.by, known.run) == ("pace", run.id)
    assert known.seconds == pytest.approx(100.0)
    assert isinstance(other, Estimate)
    assert other.by == "plan"
    assert (known.steps, known.watt_hours) == (10, None)
    total = total_of([known, other, NoEstimate("it has no rows")])
    assert (total.by, total.by_plan, total.unknown, total.without_energy) == ("mixed", 1, 1, 2)
    assert (total.seconds, total.watt_hours, total.reason) == (
        known.seconds + other.seconds,
        other.watt_hours,
        "it has no rows",
    )
    assert total_of([other]).by == "plan"
    assert total_of([]).by is None


def test_the_rows_of_a_cpu_that_is_not_known_are_not_sampled(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "sample_lengths", lambda _: pytest.fail("sampled"))
    cpu = config.model_copy(update={"hardware": config.hardware.model_copy(update={"device": "cpu"})})
    assert Estimator().estimate(cpu) == NoEstimate("the speed of this CPU is not known to the plan")


def test_a_model_that_is_not_here_is_reported(config: Config, card: None) -> None:
    gone = config.model_copy(update={"model": config.model.model_copy(update={"base": "/nowhere/model"})})
    found = Estimator().estimate(gone)
    assert isinstance(found, NoEstimate)
    assert found.reason.startswith("it cannot be planned: ")
    assert not found.reason.endswith(".")
