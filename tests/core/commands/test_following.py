"""Following a run: the line of progress, what waits for the end of a step, and the summary at its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from core.commands.follow import Followed
from core.commands.progress import phase_words, present, sample_words, step_words
from core.commands.runs import describe_row, state_words
from core.commands.summary import summarize, summary_lines
from core.commands.watch import JsonLines, Log
from core.runs.catalog.rows import RunCatalog
from core.runs.record.events import EvalEvent, FinishedEvent, HardwareEvent, PhaseEvent, SampleEvent
from core.runs.record.history import RunPhase
from core.runs.record.sentences import evaluation
from core.runs.record.state import RunState, StepProgress, hostname, own_identity
from core.runs.record.store import Run
from tests.cases import cases, tables
from tests.core.runs.test_eta import steady

from .conftest import a_step


def test_rewards_are_reported_where_there_are_any() -> None:
    plain_step = step_words(a_step(3), 10)
    assert "margin" not in plain_step
    assert "acc" not in plain_step
    compared_step = a_step(3, tokens_per_second=300.0, reward_margin=0.25, reward_accuracy=0.875)
    assert "margin 0.250  acc 0.88  300 tok/s" in step_words(compared_step, 10)
    plain = EvalEvent(step=1, loss=0.5, perplexity=1.6, seconds=1.0, rows=8)
    assert evaluation(plain) == "eval loss 0.500 (8 rows)"
    compared = EvalEvent(
        step=1, loss=0.5, perplexity=None, seconds=1.0, rows=8, reward_margin=0.25, reward_accuracy=0.875
    )
    assert evaluation(compared) == "eval loss 0.500, reward accuracy 0.88, margin 0.250 (8 rows)"


def test_an_answer_is_reported_with_what_became_of_it() -> None:
    def words(**marks: Any) -> str:
        return sample_words(SampleEvent(step=3, prompt="Is it?\nReally?", text=" yes ", source="step-3", **marks))

    assert words() == 'step-3 to "Is it?⏎Really?": yes'
    assert words(expected="yes", exact_match=True) == 'step-3 to "Is it?⏎Really?": yes (right)'
    assert words(expected="no", exact_match=False) == 'step-3 to "Is it?⏎Really?": yes (wanted: no)'
    assert words(expected="word " * 40, exact_match=False) == 'step-3 to "Is it?⏎Really?": yes'


@cases(("phase", "progress", "words"), tables(__file__)["phases"])
def test_a_phase_is_reported_with_the_part_that_it_is_at_once(
    phase: list[Any], progress: list[Any], words: str
) -> None:
    assert phase_words(RunPhase(*phase), StepProgress(*progress) if progress else None, 12.0) == words


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


def test_watch_shows_programs_what_waits_and_how_far_it_is(
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


def test_runs_shows_both(followed: Followed) -> None:
    (row,) = RunCatalog().rows()
    assert state_words(row) == "training (micro-batch 3/8)"
    ask(followed, "pause")
    (row,) = RunCatalog().rows()
    assert state_words(row) == "training (pausing)"
    described = describe_row(row)
    assert described["pending"] == ["pause"]
    assert described["progress"] == {"what": "micro_batches", "done": 3, "total": 8}


@cases("adapter", ["adapter", "checkpoints/step-1/adapter", "/etc", "../other/adapter", "a/../../b", "a\0b", "", None])
def test_an_adapter_is_in_its_run(tmp_path: Path, adapter: str | None) -> None:
    followed = Followed(Run(tmp_path), RunState(state="finished"))
    followed.apply(FinishedEvent(reason="", step=1, adapter=adapter))
    told = str(tmp_path / adapter) if adapter and adapter.endswith("adapter") and ".." not in adapter else None
    assert summarize(followed)["adapter"] == told


def test_the_end_says_what_was_gained_and_what_it_took(tmp_path: Path) -> None:
    before, after = _evaluation(0, 4.0, 0.0), _evaluation(2, 0.1, 0.35)
    begin, energy = PhaseEvent(t=0.0, name="training"), HardwareEvent(t=61.0, devices=[], energy_wh=1.3)
    for events, wanted in (
        ((begin, before, after, energy), ["gained    exact match 0.00 → 0.35", "gained    eval loss 4.00 → 0.100"]),
        ((after,), ["measured  exact match 0.35", "measured  eval loss 0.100"]),
    ):
        followed = Followed(Run(tmp_path), RunState(state="finished", step=2, total_steps=2))
        for event in (*events, FinishedEvent(t=90.0, reason="all steps done", step=2)):
            followed.apply(event)
        followed.history.last_step = a_step(2, loss=0.1)
        lines = summary_lines(followed, summarize(followed))
        assert [line for line in lines if line.startswith(("gained", "measured"))] == wanted
        assert ("took      1m 30s, 1.3 Wh" in lines) == (energy in events)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    RunState(state="queued").write(tmp_path / "state.json")
    followed = Followed(Run(tmp_path), RunState(state="lost", reason="its process never started"))
    assert summary_lines(followed, summarize(followed)) == [
        f"run       {tmp_path.name}",
        "state     lost (its process never started)",
        f"next      It saved no checkpoint; start it again with 'localtune-tui train {tmp_path}/run.toml'.",
    ]


def _evaluation(step: int, loss: float, exact: float) -> EvalEvent:
    return EvalEvent(t=float(step), step=step, loss=loss, perplexity=1.0, seconds=1.0, exact_match=exact)
