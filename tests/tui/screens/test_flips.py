"""Flipped answers in the app: on the card of an ended run, in a comparison, and in the results of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from core.evaluation.held_out import answers_path, keep_answers
from core.evaluation.prompt_set import PromptItem
from core.runs.record.store import Run
from tests.tui.harness import FORBIDDEN, HOSTILE, press, running, screen_lines, screen_text, shown, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.messages import AskWhy
from tui.screens.compare import CompareScreen
from tui.screens.evaluation import EvaluationScreen

BEFORE = {"first": "yes", "second": "no", "third": "no"}
AFTER = {"first": HOSTILE, "second": "yes", "third": "no"}


def ended_run(home: Path, identity: str, answers: Mapping[int, Mapping[str, str]]) -> Run:
    """A finished run with answers to held-out rows at some steps; "yes" is right."""
    script = ScriptedRun(home, identity, total=60).begin().steps(1, 60).end("finished")
    for step, given in answers.items():
        items = [
            PromptItem(f"rows.jsonl:{line}", ({"role": "user", "content": f"{question} {HOSTILE}"},), "yes")
            for line, question in enumerate(given, 1)
        ]
        keep_answers(script.run, step, items, list(given.values()), 9, best=None)
    return script.run


@pytest.fixture
def home(private_home: Path) -> Path:
    return private_home


async def test_the_card_of_a_run_lists_what_flipped_with_its_training(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended_run(home, "20261124-143600-tickets", {0: BEFORE, 60: AFTER})
    asked: list[AskWhy] = []
    monkeypatch.setattr("tui.controllers.why.Why.ask", lambda _, message: asked.append(message))
    async with running(LocaltuneApp(run="latest")) as (app, pilot):
        await shown(pilot, "answers flipped   1 right → wrong, 1 wrong → right, of 3", "f what flipped")
        await press(pilot, "f", until=f"base → {run.id}@60: 1 of 3 answers went right → wrong")
        rows = [line for line in screen_lines(app) if "- wrong" in line or "+ right" in line]
        assert ["first" in line for line in rows] == [True, False], "those that went wrong come first"
        assert all(len(line) <= 80 for line in screen_lines(app))
        scores = (f"{run.id}@60  exact match 0.00", "base  exact match 1.00")
        await press(pilot, "enter", until=("prompt rows.jsonl:1", *scores))
        assert "+ right" not in screen_text(app)
        assert not FORBIDDEN & set(screen_text(app))
        await press(pilot, "w", until=lambda: asked)
        (why,) = asked
        assert (why.run, why.step, why.wanted) == (run, 60, "yes")
        assert why.messages[-1]["content"].startswith("first")
        await press(pilot, "escape", until="+ right")
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, EvaluationScreen))
    answers_path(run, 0).unlink()
    async with running(LocaltuneApp(run="latest")) as (app, pilot):
        await shown(pilot, "✓ finished")
        await pilot.press("f")
        assert not isinstance(app.screen, EvaluationScreen)
        assert "answers flipped" not in screen_text(app)


async def test_a_comparison_lists_what_flipped_from_the_older_run_to_the_newer(home: Path) -> None:
    old = ended_run(home, "20261124-143600-old", {60: BEFORE})
    new = ended_run(home, "20261125-143600-new", {60: AFTER | {"fourth": "no"}})
    counts = f"{old.id}@60 → {new.id}@60: 1 of 3 answers went right → wrong, 1 wrong → right"
    async with running(size=(120, 34)) as (app, pilot):
        app.push_screen(CompareScreen([new, old]))
        await shown(pilot, counts, "f flipped")
        await press(pilot, "f", until=lambda: isinstance(app.screen, EvaluationScreen))
        await shown(pilot, "exact match", counts, "1 question was put to", "- wrong  1", "+ right  2")
        await press(pilot, "f", until="all 3: 1 won, 1 lost")
        await press(pilot, "escape", until=lambda: isinstance(app.screen, CompareScreen))


async def test_a_comparison_says_why_nothing_can_have_flipped(home: Path) -> None:
    runs = [ended_run(home, f"2026112{day}-143600-run", {}) for day in (4, 5)]
    async with running(size=(120, 34), notifications=True) as (app, pilot):
        app.push_screen(CompareScreen(runs))
        await wait_for(pilot, lambda: "esc close" in screen_text(app) and "m curve" in screen_text(app))
        await wait_for(pilot, lambda: app.screen.check_action("flips", ()))
        await press(pilot, "f", until="train with eval.exact_match")
