"""The keys of the chart in the Train pane: curves, zoom, pan and the cursor, and what they leave alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from core.runs.record import events
from tests.tui.harness import pane_of, screen_lines, screen_text, wait_for
from tests.tui.panes.train.test_pane import border, open_app, script_run, shown
from tests.tui.scripted_run import GPU, ScriptedRun
from tui.app import LocaltuneApp
from tui.widgets.charts.line_chart import LineChart


def live_run(home: Path, steps: int = 240) -> ScriptedRun:
    """A run that is on, with a sample of its device every fifth step."""
    script = ScriptedRun(home, total=400)
    script.begin()
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
    app = open_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot, "each step ─")
        await pilot.press("3", "m", "m", "m", "m")
        await shown(pilot, "temperature ━", "°C└")
        await pilot.press("o")
        await shown(pilot, "temperature ━", "loss (right) ┈┈", "┘")
        before = axis(app).split()
        await pilot.press("O", "M")
        await shown(pilot, "tokens/s each step ─", "tok/s└")
        assert "(right)" not in screen_text(app)
        await pilot.press("M", "M", "M")
        await shown(pilot, "each step ─  smoothed ━")
        assert {"100", "200", "400"} <= set(before), "all curves have the same axis of steps"


async def test_zoom_pan_and_back_to_all_steps(home: Path) -> None:
    script = live_run(home)
    app = open_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot, "step 400")
        await pilot.press("3", "plus", "equals_sign")
        await wait_for(pilot, lambda: "step 400" not in axis(app))
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
        await pilot.press("minus", "minus", "minus")
        await shown(pilot, "step 400")
        await pilot.press("plus")
        await wait_for(pilot, lambda: chart_of(app).zoom.span is not None)
        await pilot.press("w")
        await wait_for(pilot, lambda: chart_of(app).zoom.span is None)


async def test_the_cursor_reads_out_and_escape_takes_it_away_before_the_zoom(home: Path) -> None:
    live_run(home)
    app = open_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot, "each step ─")
        await pilot.press("3", "left")
        await shown(pilot, "step 240", "loss ", "smoothed ")
        await pilot.press("left", "h", "right", "l", "l", "left")
        found = chart_of(app).cursor
        assert found is not None
        assert 230 <= found < 240
        await shown(pilot, f"step {found}")
        await pilot.press("plus", "plus", "plus", "plus", "plus")
        window = chart_of(app)._window
        assert window.low <= found <= window.high
        assert window.high - window.low < 20
        for _ in range(12):
            await pilot.press("left")
        cursor, window = chart_of(app).cursor, chart_of(app)._window
        assert cursor is not None
        assert window.low <= cursor <= window.high, "the part moves with the cursor"
        await pilot.press("escape")
        await wait_for(pilot, lambda: "each step ─" in screen_text(app))
        assert chart_of(app).zoom.span is not None
        await pilot.press("escape")
        await shown(pilot, "step 400")
        assert chart_of(app).zoom.span is None


@pytest.mark.long
async def test_a_log_axis_is_kept_for_each_curve(home: Path) -> None:
    live_run(home)
    app = open_app()
    async with app.run_test(size=(120, 34)) as pilot:
        await shown(pilot, "each step ─")
        await pilot.press("y")
        await shown(pilot, "log axis  each step")
        await pilot.press("m")
        await shown(pilot, "learning rate ━")
        assert "log axis  learning" not in screen_text(app)
        await pilot.press("m", "m", "m", "y")
        await shown(pilot, "temperature ━")
        assert "log axis" not in border(app), "of a temperature it makes no sense"
        assert not chart_of(app).log_axis
        await pilot.press("M", "M", "M", "M")
        await shown(pilot, "log axis  each step")


async def test_where_answers_are_shown_the_arrows_turn_those(home: Path) -> None:
    script_run(home).end("finished")
    app = open_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot, "✓ finished")
        await pilot.press("a", "right", "plus", "l", "m")
        await shown(pilot, "answers 2/2")
        assert chart_of(app).cursor is None
        assert chart_of(app).zoom.span is None
        await pilot.press("escape", "right")
        await shown(pilot, "step 60", "loss ")
        assert chart_of(app).cursor == 60


@pytest.mark.long
async def test_beside_answers_the_cursor_has_keys_of_its_own(home: Path) -> None:
    script_run(home).end("finished")
    app = open_app()
    async with app.run_test(size=(200, 50)) as pilot:
        await shown(pilot, "✓ finished")
        await pilot.press("3")
        await shown(pilot, "┤", "answers 1/2")
        await pilot.press("l", "right")
        await shown(pilot, "answers 2/2", "step 60")
        assert chart_of(app).cursor == 60
        await pilot.press("escape")
        assert chart_of(app).cursor is None
        assert pane_of(app, "train")._shows_answers
        await pilot.press("escape")
        await wait_for(pilot, lambda: not pane_of(app, "train")._shows_answers)


async def test_what_happened_is_marked(home: Path) -> None:
    script = live_run(home)
    for command in ("pause", "resume"):
        script.write(events.ControlEvent(t=script.pass_time(1), command=command, sender="socket", result="ok"))
    app = open_app()
    async with app.run_test(size=(200, 50)) as pilot:
        await shown(pilot, "each step ─")
        await pilot.press("3", "left")
        await shown(pilot, "‖ paused on request", "▲", "paused on request  resumed on request  checkpoint step-240")
        await pilot.press("escape")
        await shown(pilot, "▲ checkpoint  ‖ pause")
