"""In what order a checkpoint and what goes with it reach the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import nn

from core.config.schema import Config, DataSection
from core.runs.events import CheckpointEvent, StepEvent, StoppedEvent
from core.runs.store import create_run
from core.runs.tail import EventTail
from core.worker.checkpoint.checkpointer import Keeper
from core.worker.process.recorder import Recorder
from core.worker.train import FinetuneRecipe
from tests.core.worker.process.test_recorder import step


def recipe_of(recorder: Recorder, config: Config) -> FinetuneRecipe:
    """What the keeper asks of a recipe that has done three steps."""
    nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
    model = nn.Linear(2, 2)
    recipe = SimpleNamespace(
        run=recorder.run,
        config=config,
        recorder=recorder,
        step=3,
        total_steps=9,
        data_fingerprint="d",
        held_out_fingerprint="",
        base_fingerprint=SimpleNamespace(value="b"),
        measured=None,
        liger=False,
        loaded=SimpleNamespace(model=model),
        update=SimpleNamespace(state_dict=dict),
        accelerator=SimpleNamespace(scaler=None),
        windows=SimpleNamespace(token_budget=8, checkpointing=False, offloading=False),
        attendant=SimpleNamespace(overrides={}, pause=nothing),
        selection=SimpleNamespace(facts=dict, saved=nothing, protected=set()),
        health=SimpleNamespace(facts=dict),
        warn=nothing,
    )
    return cast(FinetuneRecipe, recipe)


def test_events_up_to_a_checkpoint_are_durable_before_it_is(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(data=DataSection(train="rows.jsonl"))
    run = create_run(config, "test")
    recorder = Recorder(run)
    try:
        for number in (1, 2, 3):
            recorder.event(step(number))
        done: list[str] = []
        replace, fsync = os.replace, os.fsync

        def note_sync(file: int) -> None:
            if os.path.samestat(os.fstat(file), run.events_path.stat()):
                steps = [event.step for event in EventTail(run.events_path).read_all() if isinstance(event, StepEvent)]
                done.append(f"events to step {steps[-1]}")
            fsync(file)

        def note_rename(old: Any, new: Any) -> None:
            done.extend([Path(new).name] if Path(new).parent == run.checkpoints_path else [])
            replace(old, new)

        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(os, "replace", note_rename)
        Keeper(recipe_of(recorder, config)).save()
        assert done == ["events to step 3", "step-00000003"]
        assert any(isinstance(event, CheckpointEvent) for event in EventTail(run.events_path).read_all())
    finally:
        recorder.close("stopped", "", StoppedEvent(reason="", step=3))
