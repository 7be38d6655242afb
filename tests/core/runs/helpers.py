"""Helpers shared by the tests of runs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from core.config.schema import Config, DataSection
from core.runs.record.events import Event, StepEvent, encode_event
from core.runs.record.state import RunState, hostname, own_identity
from core.runs.record.store import Run

T = TypeVar("T")

_STEP = StepEvent(
    t=0.0, step=0, epoch=0.1, loss=1.0, lr=1e-4, grad_norm=1.0, tokens=100, supervised_tokens=40, seconds=2.0,
    tokens_per_second=50.0,
)  # fmt: skip


def there(value: T | None) -> T:
    """The value, which is not None."""
    assert value is not None
    return value


def config_for(directory: Path) -> Config:
    """A valid configuration."""
    return Config(data=DataSection(train=str(directory / "train.jsonl")))


def step_event(number: int, **changes: Any) -> StepEvent:
    """A step of 100 tokens in 2 seconds, a hundred seconds and its number after 1970."""
    return replace(_STEP, **{"t": 100.0 + number, "step": number, **changes})


def write_events(run: Run, *events: Event) -> None:
    """Write the record of a run."""
    run.events_path.write_text("".join(map(encode_event, events)), encoding="utf-8")


def live_state(state: str = "training", **changes: Any) -> RunState:
    """A state that this very process could have written just now."""
    pid, identity = own_identity()
    usual = {"state": state, "pid": pid, "pid_started": identity, "host": hostname(), "updated": time.time()}
    return RunState(**{**usual, **changes})


def add_checkpoint(run: Run, step: int = 3) -> Path:
    """A checkpoint with an empty manifest."""
    directory = run.checkpoints_path / f"step-{step:08d}"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    return directory
