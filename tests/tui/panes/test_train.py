"""The Train pane: a run, its keys, and the keys of the chart."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.runs.record import events
from core.runs.record.state import Rank, write_ranks
from core.runs.record.store import Labels, read_labels
from tests.tui.fake_session import FakeSession, factory
from tests.tui.harness import has_live_run, pane_of, press, resize, running, screen_lines, screen_text, shown, wait_for
from tests.tui.scripted_run import CONFIG, GPU, ScriptedRun
from tui.app import LocaltuneApp
from tui.widgets.answers import AnswersView
from tui.widgets.charts.line_chart import LineChart

QUESTIONS = (("Router 12 is dead", '{"ref": 12}'), ("Invoice 7 was paid twice", '{"ref": 7}'))
ANSWERS = {0: "Have you tried turning it off and on again?", 30: '{"ref": 1}', 60: None}


def write_samples(script: ScriptedRun, step: int) -> None:
    """Answers to both questions; the last ones are right."""
    for prompt, wanted in QUESTIONS:
        text = ANSWERS[step] or wanted
        script.sample(step, prompt, text, expected=wanted, exact_match=text == wanted, valid_json=step > 0)


def script_run(home: Path, *, start: float | None = None) -> ScriptedRun:
    """A run of 60 steps with two questions, asked three times."""
    script = ScriptedRun(home, total=60, start=start).begin().evaluate(0, 4.11, 0.0, 0.0)
    write_samples(script, 0)
    for first, last, loss, exact in ((1, 30, 0.8, 0.1), (31, 60, 0.1, 0.35)):
        script.steps(first, last).checkpoint(last).evaluate(last, loss, exact, 1.0)
        write_samples(script, last)
    return script


@asynccontextmanager
async def latest_run(
    *texts: str, size: tuple[int, int] = (80, 24), notifications: bool = False
) -> AsyncIterator[tuple[LocaltuneApp, Pilot[Any]]]:
    """The app with the newest run, once texts are on the screen."""
    async with running(LocaltuneApp(run="latest"), size, notifications=notifications) as (app, pilot):
        await shown(pilot, *texts)
        yield app, pilot


def border(app: LocaltuneApp) -> str:
    """The lower border of the pane."""
    return screen_lines(app)[-2]


async def test_the_answers_are_behind_a_key_and_are_walked_through(home: Path) -> None:
    script_run(home).end("finished")
    async with latest_run("✓ finished", "step 60") as (app, pilot):
        for back in ("a", "escape"):
            await pilot.press("a")
            await shown(pilot, "answers 1/2", "ask      Router 12 is dead", 'step 60  ✓ {"ref": 12}', "step 30  ✗")
            assert "┤" not in screen_text(app)
            assert "─ n question  [ ] step  v beside the first  esc curve  pgup log  ? more ─" in border(app)
            await press(pilot, back, until=lambda: "┤" in screen_text(app) and "ask      " not in screen_text(app))
        assert "answers 1/2" not in screen_text(app)
        await pilot.press("n")
        assert pane_of(app, "train")._shows_answers is False, (
            "there is no question to turn to before the answers are shown"
        )
        await press(pilot, "a", "n", until=("answers 2/2", "Invoice 7"))
        await press(pilot, "right", "N", "left", "j", "k", "pagedown", "pageup", until="answers 1/2")
        await press(pilot, "escape", "left_square_bracket", "v")
        assert "(30" not in screen_text(app), "they work in the answers alone"
        await press(pilot, "a", until=("(30 ✗)[60 ✓]", "[ ] step  v beside the first"))
        await press(pilot, "left_square_bracket", until=("(0 ✗)[30 ✗]", "rewritten"))
        await press(pilot, "left_square_bracket", until=("[0 ✗]", "no earlier answer"))
        await press(pilot, "right_square_bracket", "right_square_bracket", "v", until="(0 ✗) 30 ✗ [60 ✓]")
        await press(pilot, "escape", "escape", "a", "right", "plus", "m", until="answers 2/2")
        assert (chart_of(app).cursor, chart_of(app).zoom.span) == (None, None)
        await press(pilot, "escape", "right", until=("step 60", "loss "))
        assert chart_of(app).cursor == 60


async def test_answers_come_while_the_run_trains(home: Path) -> None:
    script = ScriptedRun(home, total=60)
    script.run.config_path.write_text(CONFIG.replace("[method]", 'eval = "/data/held_out.jsonl"\n[method]'))
    script.begin()
    async with latest_run("training") as (app, pilot):
        await press(pilot, "a", until="No answers yet: the questions are asked at each evaluation.")
        await pilot.press("a")
        assert "answers" not in border(app)
        write_samples(script, 0)
        script.steps(1, 30)
        await wait_for(pilot, lambda: "a answers" in border(app))
        await press(pilot, "a", until="step 0  ✗ no JSON")
        assert "step 30" not in screen_text(app)
        write_samples(script, 30)
        await shown(pilot, "step 30  ✗")


async def test_on_a_wide_screen_the_answers_stand_beside_the_curve(home: Path) -> None:
    script_run(home).end("finished")
    async with latest_run("✓ finished", size=(200, 50)) as (app, pilot):
        assert "ask      Router" not in screen_text(app), "a tile has no room for both"
        await press(pilot, "3", until=("┤", "ask      Router 12"))
        await press(pilot, "escape", until=lambda: "ask      Router" not in screen_text(app))
        await press(pilot, "a", until=("┤", "ask      Router 12"))
        await pilot.resize_terminal(100, 30)
        await wait_for(pilot, lambda: "┤" not in screen_text(app))
        assert "ask      Router 12" in screen_text(app)


async def test_long_answers_scroll_and_the_walk_of_a_run_ends_with_it(home: Path) -> None:
    script = ScriptedRun(home, total=60).begin()
    for step in (0, 30, 60):
        script.sample(step, "Tell a story", f"It was {step}. " * 200 + "The end.")
    script.steps(1, 60)
    async with latest_run("a answers") as (app, pilot):
        await press(pilot, "a", "left_square_bracket", until=("[30]", "It was 30."))
        assert "The end." not in screen_text(app)
        await wait_for(pilot, lambda: "pgdn read on  [ ] step  v beside the first  esc curve" in border(app))
        await press(pilot, *["pagedown"] * 12, until=("The end.", "It was 0."))
        await pilot.press("k")
        view = pane_of(app, "train").query_one(AnswersView)
        before = view.scroll_y
        await pilot.press("right_square_bracket")
        await wait_for(pilot, lambda: "It was 30." in screen_text(app) and "It was 0." not in screen_text(app))
        assert view.scroll_y == before, "the place in a long answer stays while evaluations are compared"
        view.reset()
        assert view.walk.step == 0


async def test_the_path_is_copied_and_the_ways_to_use_it_elsewhere_are_shown(home: Path) -> None:
    script = script_run(home).end("finished")
    async with latest_run("adapter 1.9 kB", size=(100, 30), notifications=True) as (app, pilot):
        await press(pilot, "ctrl+y", until=lambda: app.clipboard == str(script.run.adapter_path))
        await shown(pilot, "✓ copied: the path")
        await pilot.press("h")
        await shown(pilot, f"localtune-tui chat {script.run.id}", "PeftModel.from_pretrained", "copy the Python code")
        await press(pilot, "c", until=lambda: "PeftModel.from_pretrained(model, adapter)" in app.clipboard)
        await press(pilot, "h", until="copy the path")
        await press(pilot, "p", until=lambda: app.clipboard == str(script.run.adapter_path))


async def test_a_better_step_is_taken_as_the_result_and_given_back(home: Path) -> None:
    script = ScriptedRun(home, total=60).begin().steps(1, 30).checkpoint(30).evaluate(30, 0.5)
    run = script.steps(31, 60).checkpoint(60).evaluate(60, 0.6).end("finished").run
    (run.adapter_path / "adapter_config.json").touch()
    shutil.copytree(run.adapter_path, run.checkpoints_path / "step-00000030" / "adapter")
    async with latest_run("step 30 was better (0.500): B takes it") as (_app, pilot):
        await press(pilot, "B", until="step 30 is taken as the result (0.500): B takes step 60 again")
        assert read_labels(run.path).result == 30
        await press(pilot, "B", until="step 30 was better (0.500): B takes it")
        assert read_labels(run.path) == Labels()


async def test_the_chat_loads_the_model_again_after_another_step_was_taken(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ScriptedRun(home, total=60).begin().steps(1, 30).checkpoint(30).evaluate(30, 0.5)
    run = script.steps(31, 60).checkpoint(60).evaluate(60, 0.6).end("finished").run
    (run.adapter_path / "adapter_config.json").touch()
    shutil.copytree(run.adapter_path, run.checkpoints_path / "step-00000030" / "adapter")
    before, after = FakeSession({"tuned": ["step 60"]}), FakeSession({"tuned": ["step 30"]})
    opened = factory(before, after)
    monkeypatch.setattr("core.chat.session.open_session", lambda target, **_: opened(target))
    async with latest_run("step 30 was better (0.500): B takes it") as (_, pilot):
        await press(pilot, "4", "i", *"hello", "enter", until="step 60")
        await press(pilot, "escape", "3", "B", until="step 30 is taken as the result")
        await wait_for(pilot, lambda: before.closed)
        await press(pilot, "4", "i", *"again", "enter", until=lambda: after.asked)


async def test_a_run_without_a_result_offers_none(home: Path) -> None:
    script = ScriptedRun(home).begin()
    script.write(events.FailedEvent(t=script.pass_time(1.0), reason="There is no model.", step=0))
    script.write_state(state="failed", reason="There is no model.")
    said = "✗ failed", "There is no model.", "No step was done.", "e again with changes"
    async with latest_run(*said) as (app, pilot):
        await pilot.press("h", "a", "ctrl+y")
        assert app.screen is app.main
        for text in ("copy its path", "continue from there", "ask it"):
            assert text not in screen_text(app)


async def test_several_processes_have_a_line_and_a_screen(home: Path) -> None:
    script = ScriptedRun(home, total=60).begin()
    ranks = [Rank(rank=0, host="head", pid=11, device="cuda:0"), Rank(rank=1, host="tower", pid=7, device="cuda:0")]
    script.write(events.RanksEvent(t=script.pass_time(0.1), ranks=[rank.to_dict() for rank in ranks]))
    script.steps(1, 5)
    async with latest_run("2 processes  head 0 cuda:0 · tower 1 cuda:0") as (_app, pilot):
        write_ranks(script.run.path, [replace(rank, heard=time.time() - 30 * rank.rank) for rank in ranks])
        await shown(pilot, "2 processes  no sign of life for 3", "1 on tower")
        await press(pilot, "5", "d", until="Curve")
        await press(pilot, "tab", until=("[Processes]", "1  tower    cuda:0    7  3"))


def live_run(home: Path, steps: int = 240) -> ScriptedRun:
    """A run that is on, with a sample of its device every fifth step."""
    script = ScriptedRun(home, total=400).begin()
    for step in range(1, steps + 1):
        script.steps(step, step)
        if step % 5 == 0:
            script.hardware(replace(GPU, temperature_c=round(75 - 25 * math.exp(-step / 40))))
    script.checkpoint(steps)
    return script


def chart_of(app: LocaltuneApp) -> LineChart:
    return app.query_one(LineChart)


def axis(app: LocaltuneApp) -> str:
    """The labels of the steps."""
    return next(line for line in reversed(screen_lines(app)) if "  step " in line or "│step " in line)


async def test_a_key_turns_through_the_curves_and_another_lays_one_over_it(home: Path) -> None:
    live_run(home)
    async with latest_run("each step ─") as (app, pilot):
        await press(pilot, "3", "m", "m", "m", "m", until=("temperature ━", "°C└"))
        await press(pilot, "y", until=("temperature ━", "loss (right) ┈┈", "┘"))
        before = axis(app).split()
        await press(pilot, "Y", "M", until=("tokens/s each step ─", "tok/s└"))
        assert "(right)" not in screen_text(app)
        await press(pilot, "M", "M", "M", until="each step ─  smoothed ━")
        assert {"100", "200", "400"} <= set(before), "all curves have the same axis of steps"


async def test_zoom_pan_and_back_to_all_steps(home: Path) -> None:
    script = live_run(home)
    async with latest_run("step 400") as (app, pilot):
        await press(pilot, "3", "plus", "equals_sign", until=lambda: "step 400" not in axis(app))
        window = chart_of(app)._window
        assert window.low <= 240 <= window.high
        assert window.high - window.low == pytest.approx(100, abs=1)
        script.steps(241, 330)
        await wait_for(pilot, lambda: chart_of(app)._window.high >= 330)
        await pilot.press("less_than_sign", "shift+left", "less_than_sign")
        stood = chart_of(app)._window
        assert stood.high < 300
        script.steps(331, 360)
        await wait_for(pilot, lambda: chart_of(app).data.newest == 360)
        assert chart_of(app)._window == stood, "what was panned to stays in sight"
        await press(pilot, "minus", "minus", "minus", until="step 400")
        await press(pilot, "plus", until=lambda: chart_of(app).zoom.span is not None)
        await press(pilot, "z", until=lambda: chart_of(app).zoom.span is None)


async def test_the_cursor_reads_out_and_escape_takes_it_away_before_the_zoom(home: Path) -> None:
    live_run(home)
    async with latest_run("each step ─") as (app, pilot):
        await press(pilot, "3", "left", until=("step 240", "loss ", "smoothed "))
        await pilot.press("left", "left", "right", "right", "right", "left")
        found = chart_of(app).cursor
        assert found is not None
        assert 230 <= found < 240
        await shown(pilot, f"step {found}")
        await pilot.press(*["plus"] * 5, *["left"] * 12)
        window = chart_of(app)._window
        assert window.high - window.low < 20
        assert window.low <= (chart_of(app).cursor or 0) <= window.high, "the part moves with the cursor"
        await press(pilot, "escape", until="each step ─")
        assert chart_of(app).zoom.span is not None
        await press(pilot, "escape", until="step 400")
        assert chart_of(app).zoom.span is None


@pytest.mark.long
async def test_a_log_axis_is_kept_for_each_curve(home: Path) -> None:
    live_run(home)
    async with latest_run("each step ─", size=(120, 34)) as (app, pilot):
        await press(pilot, "L", until="log axis ▲ saved step ─")
        await press(pilot, "m", until="learning rate ━")
        assert "log axis ▲" not in screen_text(app)
        await press(pilot, "m", "m", "m", "L", until="temperature ━")
        assert "log axis" not in border(app), "of a temperature it makes no sense"
        assert not chart_of(app).log_axis
        await press(pilot, "M", "M", "M", "M", until="log axis ▲ saved step ─")


@pytest.mark.long
async def test_beside_answers_the_cursor_has_keys_of_its_own(home: Path) -> None:
    script_run(home).end("finished")
    async with latest_run("✓ finished", size=(200, 50)) as (app, pilot):
        await press(pilot, "3", until=("┤", "answers 1/2"))
        await press(pilot, "right", "n", until=("answers 2/2", "step 60"))
        assert chart_of(app).cursor == 60
        await pilot.press("escape")
        assert chart_of(app).cursor is None
        assert pane_of(app, "train")._shows_answers
        await press(pilot, "escape", until=lambda: not pane_of(app, "train")._shows_answers)


async def test_readings_without_room_are_behind_a_key_that_the_border_names(home: Path) -> None:
    script = ScriptedRun(home).train_to(30)
    async with running(size=(80, 24), until=has_live_run) as (app, pilot):
        await press(pilot, "3", until="d readings")
        assert "fan" not in screen_text(app)
        await press(pilot, "d", until="esc close")
        text = screen_text(app)
        of_run, of_card = ("exact 0.83", "1.9 Wh"), ("memory  84 °C", "fan  54%", "2,520 MHz", "held back by", "PCIe")
        for reading in (*of_run, *of_card, "load", "disk", "CPU  54 °C"):
            assert reading in text
        await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)
        await resize(pilot, 120, 34)
        await press(pilot, "0", until="4 Chat")
        await wait_for(pilot, lambda: "76%          d readings" in screen_text(app))
        await resize(pilot, 200, 50)
        await wait_for(pilot, lambda: "fan" in screen_text(app))
        script.hardware(GPU, replace(GPU, index=1))
        await resize(pilot, 120, 34)
        await shown(pilot, "GPU 1", "76%          d more")


async def test_the_border_names_the_keys_for_what_the_log_hides(home: Path) -> None:
    script = live_run(home)
    async with latest_run("training", size=(80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: "pgup log  p pause  x stop  d readings  ^s checkpoint  ? more" in border(app))
        assert "whole lines" not in border(app)
        for keys in (("pageup",) * 9, ("k",) * 30):
            assert "importing" not in screen_text(app)
            await press(pilot, *keys, until="importing")
            await wait_for(pilot, lambda: "pgdn log  p pause" in border(app))
            await press(pilot, "G", until=lambda: "importing" not in screen_text(app))
        await resize(pilot, 80, 60)
        await wait_for(pilot, lambda: "importing" in screen_text(app) and "pgup log" not in border(app))
        await resize(pilot, 80, 24)
        script.write(
            events.NoticeEvent(t=script.pass_time(0.0), level="warning", code="x", message="word " * 30 + "end")
        )
        await wait_for(pilot, lambda: "enter whole lines" in border(app))
        await press(pilot, "enter", until="end")
        await wait_for(pilot, lambda: "whole lines" not in border(app))
        await press(pilot, "enter", until=lambda: "enter whole lines" in border(app))
