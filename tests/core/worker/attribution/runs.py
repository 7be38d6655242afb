"""Short runs in this process, whose answers are traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from core.config.schema import Config
from core.runs.record.store import Run, create_run
from core.worker.attribution.subject import Subject, opened
from core.worker.process.control import Controls
from core.worker.process.determinism import apply_determinism
from core.worker.process.recorder import Recorder
from core.worker.train import train
from tests.e2e.workers import write_rows
from tests.progress import quiet

#: Steps of a run, and rows that it has.
STEPS, ROWS = 6, 12


def config_of(directory: Path, base: Path, **sections: dict[str, Any]) -> Config:
    """A short run with a checkpoint in its middle."""
    values: dict[str, dict[str, Any]] = {
        "model": {"base": str(base)},
        "data": {"train": str(directory / "rows.jsonl")},
        "method": {"name": "lora", "rank": 4, "dropout": 0.1},
        "train": {"max_steps": STEPS, "batch_size": 4, "learning_rate": 5e-3, "precision": "fp32", "packing": True},
        "eval": {"probe": False},
        "checkpoint": {"every_steps": 3},
        "chat": {"max_new_tokens": 8},
        "hardware": {"device": "cpu"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return Config.model_validate(values)


def trained(directory: Path, base: Path, **sections: dict[str, Any]) -> Run:
    """A finished run on rows in a directory, which are written if they are not there."""
    if not (directory / "rows.jsonl").exists():
        write_rows(directory / "rows.jsonl", ROWS)
    config = config_of(directory, base, **sections)
    run = create_run(config, "traced")
    recorder = Recorder(run)
    try:
        outcome = train(config, recorder, Controls(), resume=False)
        recorder.close("finished", "", outcome)
    finally:
        apply_determinism("fast", "cpu")
        torch.set_grad_enabled(True)
    return run


@contextlib.contextmanager
def subject_of(run: Run) -> Iterator[Subject]:
    """The subject of a run, with batches of a few rows."""
    with opened(run, quiet, 256) as subject:
        yield subject
