"""Pending requests and progress within a step in ``watch``, ``runs`` and the live line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from core.commands.follow import Followed
from core.commands.progress import present
from core.commands.runs import describe_row, state_words
from core.commands.watch import JsonLines, Log
from core.runs.catalog.rows import RunCatalog
from core.runs.record.events import PhaseEvent
from core.runs.record.state import RunState, StepProgress, hostname, own_identity
from core.runs.record.store import Run
from tests.core.runs.test_eta import steady

PROGRESS = StepProgress("micro_batches", 3, 8)


@pytest.fixture
def followed(private_home: Path) -> Followed:
    """A run five seconds into its eleventh step, where steps take twenty."""
    run = Run(private_home / "runs" / "20261124-143600-tickets")
    run.path.mkdir(parents=True)
    run.config_path.write_text('[model]\nbase = "m"\n')
    pid, identity = own_identity()
    now = time.time()
    state = RunState(
        state="training", pid=pid, pid_started=identity, host=hostname(), step=10, total_steps=20, updated=now,
        step_started=now - 5, progress=PROGRESS,
    )  # fmt: skip
    state.write(run.state_path)
    made = Followed(run, state)
    for event in (PhaseEvent(t=now - 206, name="training", done=0), *steady(10, 20.0, begin=now - 205)):
        made.apply(event)
    return made


def ask(followed: Followed, *pending: str) -> None:
    """A request reaches the worker, and its state the disk."""
    followed.state = RunState(**{**vars(followed.state), "pending": pending})
    followed.state.write(followed.run.state_path)


def test_the_line_of_progress_has_the_step_within_and_what_waits(followed: Followed) -> None:
    assert "micro-batch 3/8" in present(followed)
    assert "ETA 3m 1" in present(followed)
    ask(followed, "pause")
    assert present(followed).startswith("pausing after this step (≤ 1")
    assert "ETA" not in present(followed)


def test_watch_says_once_what_waits(followed: Followed, capsys: pytest.CaptureFixture[str]) -> None:
    view = Log()
    view.tick(followed)
    ask(followed, "stop")
    for _ in range(3):
        view.tick(followed)
    ask(followed)
    view.tick(followed)
    view.close()
    assert capsys.readouterr().out.count("stopping after this step (≤ 1") == 1


def test_watch_tells_programs_what_waits_and_how_far_it_is(
    followed: Followed, capsys: pytest.CaptureFixture[str]
) -> None:
    view = JsonLines()
    view.tick(followed)
    view.tick(followed)
    ask(followed, "checkpoint")
    view.tick(followed)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {"what": "micro_batches", "done": 3, "total": 8}
    assert [(line["type"], line["step"], line["pending"], line["progress"]) for line in lines] == [
        ("state", 10, [], told),
        ("state", 10, ["checkpoint"], told),
    ]


def test_runs_tells_both(followed: Followed) -> None:
    (row,) = RunCatalog().rows()
    assert state_words(row) == "training (micro-batch 3/8)"
    ask(followed, "pause")
    (row,) = RunCatalog().rows()
    assert state_words(row) == "training (pausing)"
    described = describe_row(row)
    assert described["pending"] == ["pause"]
    assert described["progress"] == {"what": "micro_batches", "done": 3, "total": 8}
