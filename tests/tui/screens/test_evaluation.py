"""The screen of an evaluation, driven by keys; models answer by a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.containers import VerticalScroll

from core import paths
from core.chat.request import Source
from core.errors import UserError
from core.evaluation.evaluation import EvaluationRequest
from core.evaluation.record import list_records, read_record
from core.evaluation.targets import Target
from tests.core.evaluation.scripted import ScriptedSession, targets
from tests.tui.harness import FORBIDDEN, HOSTILE, press, running, screen_lines, screen_text, shown, wait_for
from tui.app import LocaltuneApp
from tui.screens.evaluation import EvaluationForm, EvaluationScreen
from tui.screens.job import JobScreen

COUNT = 12


def answer(question: str, source: Source) -> str:
    number = int(question.split()[1])
    if source == "tuned":
        return f"answer {number}" if number else HOSTILE
    return "answer 0" if number == 0 else "nothing"


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedSession:
    """The model of all targets; the working directory has a file of prompts."""
    made = ScriptedSession(answer)

    def resolve(names: Sequence[str], against: Sequence[str] = ()) -> list[Target]:
        if "gone" in names:
            raise UserError("There is no run called gone.", "Name another.")
        return targets(made, [*names, *against])

    monkeypatch.setattr("core.evaluation.evaluation.resolve_targets", resolve)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {number} {HOSTILE}", "expected": f"answer {number}"} for number in range(COUNT)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return made


async def fill(pilot: Any, app: LocaltuneApp, *lines: str) -> None:
    """Open the form and fill in its lines."""
    await press(pilot, "f7", until=lambda: isinstance(app.screen, EvaluationForm) and app.focused is not None)
    for number, line in enumerate(lines):
        if number:
            await pilot.press("tab")
        await pilot.press(*("space" if character == " " else character for character in line))
    await pilot.press("enter")


async def test_prompts_are_asked_and_the_rows_scrolled_through(session: ScriptedSession, tmp_path: Path) -> None:
    async with running() as (app, pilot):
        await fill(pilot, app, "prompts.jsonl", "mine", "base")
        await wait_for(pilot, lambda: "11 won, 1 lost" in screen_text(app), 30)
        await shown(pilot, "exact match", "all 12: 11 won, 1 lost against base")
        text = screen_text(app)
        assert sum("won " in line and "question" in line for line in screen_lines(app)) >= 3, (
            "as many as there is room for"
        )
        assert all(len(line) <= 80 for line in screen_lines(app))
        assert not FORBIDDEN & set(text)
        await press(pilot, "f", until="won: 11 of 12 against base")
        await pilot.press("j", "j")
        await wait_for(pilot, lambda: any("▸ + won" in line and "question 3" in line for line in screen_lines(app)))
        await press(pilot, "f", until="lost: 1 of 12 against base")
        assert not FORBIDDEN & set(screen_text(app))
        scroll = app.screen.query_one(VerticalScroll)
        await press(pilot, "space", until=lambda: scroll.scroll_y == min(scroll.size.height - 1, scroll.max_scroll_y))
        await press(pilot, "ctrl+u", until=lambda: scroll.scroll_y == 0)
        await press(pilot, "f", until="base → mine: 1 of 12 answers went right → wrong, 11 wrong → right")
        await wait_for(pilot, lambda: any("▸ - wrong" in line and "question 0" in line for line in screen_lines(app)))
        await pilot.press("f", "G")
        await wait_for(pilot, lambda: any("▸ + won" in line and "question 11" in line for line in screen_lines(app)))
        await pilot.press("ctrl+s", "S")
        await wait_for(
            pilot, lambda: list(tmp_path.glob("evaluation-*.md")) and list(tmp_path.glob("evaluation-*.jsonl"))
        )
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, EvaluationScreen))
        await press(pilot, "f7", until=lambda: isinstance(app.screen, EvaluationForm) and app.focused is not None)
        await press(pilot, "ctrl+r", until="all 12: 11 won, 1 lost against base")
    (kept,) = list_records(paths.home() / "evaluations")
    assert read_record(kept).state == "done"


async def test_long_names_leave_the_table_in_its_lines(session: ScriptedSession) -> None:
    names = tuple(f"20261126-151009-tickets-{kind}" for kind in ("gguf-q4_k_m", "gguf-q8_0", "merged"))
    EvaluationRequest(names, prompts="prompts.jsonl").prepare().run()
    async with running() as (app, pilot):
        await press(pilot, "f7", until=lambda: isinstance(app.screen, EvaluationForm) and app.focused is not None)
        await pilot.press("ctrl+r")
        ends = ("gguf-q4_k_m", "gguf-q8_0", "tickets-merged")
        await wait_for(pilot, lambda: all(end in screen_lines(app)[2] for end in ends))
        assert not any(name in screen_lines(app)[2] for name in names)
        await pilot.resize_terminal(200, 24)
        await wait_for(pilot, lambda: all(name in screen_lines(app)[2] for name in names))


async def test_it_can_be_canceled_and_what_was_answered_is_kept(session: ScriptedSession) -> None:
    reached, release = threading.Event(), threading.Event()

    def hang(question: str, source: Source) -> str:
        if question.startswith("question 5"):
            reached.set()
            assert release.wait(30)
        return answer(question, source)

    session.answer = hang
    async with running() as (app, pilot):
        await fill(pilot, app, "prompts.jsonl", "mine", "base")
        await wait_for(pilot, lambda: reached.is_set() and "5 of 24" in screen_text(app))
        await shown(pilot, "mine: answering", "x cancel  esc keep running")
        await pilot.press("j", "f", "ctrl+s")
        await press(pilot, "x", until=session.is_closed.is_set)
        await shown(pilot, "canceling …  esc leave")
        release.set()
        await wait_for(pilot, lambda: not isinstance(app.screen, JobScreen))
        await wait_for(pilot, lambda: read_record(list_records(paths.home() / "evaluations")[0]).done == 5)
    session.answer = answer
    async with running() as (app, pilot):
        await fill(pilot, app, "prompts.jsonl", "mine", "base")
        await wait_for(pilot, lambda: "11 won, 1 lost" in screen_text(app), 30)
    assert len(list_records(paths.home() / "evaluations")) == 1


@pytest.mark.long
async def test_what_cannot_be_meant_is_shown_in_the_form(session: ScriptedSession) -> None:
    async with running(size=(120, 40)) as (app, pilot):
        for lines, said in (
            (("prompts.jsonl", ""), "No model is named"),
            (("prompts.jsonl", "'mine"), "has an open quote"),
            (("prompts.jsonl", "mine", "", "no-such-program"), "There is no program"),
            (("prompts.jsonl", "mine", "", "", "0"), "must be a whole number above 0"),
        ):
            await fill(pilot, app, *lines)
            await shown(pilot, said)
            assert isinstance(app.screen, EvaluationForm)
            await press(pilot, "ctrl+r", until="has not been evaluated yet")
            await press(pilot, "escape", until=lambda: not isinstance(app.screen, EvaluationForm))
        assert session.asked == []
        for lines, said in (
            (("none.jsonl", "mine"), "none.jsonl"),
            (("prompts.jsonl", "gone"), "There is no run called gone"),
        ):
            await fill(pilot, app, *lines)
            await shown(pilot, "✗", said)
            await press(pilot, "q", until=lambda: not isinstance(app.screen, JobScreen))
