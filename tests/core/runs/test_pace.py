"""The pace of earlier runs: of those alike only, and none where they tell none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.runs.events import Event, HardwareEvent, StepEvent, encode_event
from core.runs.pace import earlier_pace
from core.runs.store import create_run


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
    pace = earlier_pace(config_of(train={"epochs": 7}))
    assert pace is not None
    assert pace.run == newest
    assert (pace.tokens_per_second, pace.seconds_per_step) == (50.0, 2.0)
    assert pace.watt_hours_per_token == pytest.approx(2.0 / 500)


@pytest.mark.parametrize(
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
    assert earlier_pace(config_of()) is None


def test_a_run_of_too_few_steps_or_without_a_record_says_nothing(private_home: Path) -> None:
    older = record(config_of(), [step(number) for number in range(1, 6)])
    record(config_of(), [step(1)])
    create_run(config_of(), "silent")
    broken = create_run(config_of(), "broken")
    broken.config_path.write_text("not = [toml")
    pace = earlier_pace(config_of())
    assert pace is not None
    assert pace.run == older
    assert pace.watt_hours_per_token is None


def test_without_runs_there_is_no_pace(private_home: Path) -> None:
    assert earlier_pace(config_of()) is None
