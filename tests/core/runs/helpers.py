"""Helpers shared by the tests of runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from core.config.schema import Config, DataSection


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def config_for(directory: Path) -> Config:
    """A valid configuration."""
    return Config(data=DataSection(train=str(directory / "train.jsonl")))
