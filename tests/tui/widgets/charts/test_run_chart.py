"""Chart of a run: its curves, a second curve, and marks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.runs.record import events
from core.runs.record.history import read_history
from tests.tui.scripted_run import GPU, ScriptedRun
from tests.tui.widgets.charts.test_line_chart import draw, series
from tui.glyphs import ASCII, BRAILLE
from tui.state import RunView
from tui.widgets.charts.chart_data import ChartData, ChartMark, Measured
from tui.widgets.charts.line_chart import LineChart, RunChart, Zoom, curves_of
from tui.widgets.charts.plot import KINDS

START = 1_795_530_960.0


def run_of(home: Path, **device: Any) -> RunView:
    """A run of 60 steps, with a sample of its device after each, a checkpoint and a pause."""
    script = ScriptedRun(home, total=60, start=START)
    script.begin()
    for step in range(1, 61):
        script.steps(step, step)
        script.hardware(replace(GPU, **{"temperature_c": 50.0 + step / 3, **device}))
        if step == 30:
            script.checkpoint(step)
            script.evaluate(step, 0.5)
            script.write(
                *(
                    events.ControlEvent(t=script.pass_time(3), command=name, sender="socket", result="ok")
                    for name in ("pause", "resume")
                )
            )
    return RunView(script.run, script.state, read_history(script.run))


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return run_of(tmp_path_factory.mktemp("home"))


def test_a_second_curve_is_never_the_first_one_and_ends_with_none(view: RunView) -> None:
    chart, history, names = RunChart(), view.history, []
    for _ in range(7):
        chart.turn_second(history, 1)
        second = chart.second(history)
        names.append(second.name if second is not None else None)
    assert names[-1] is None
    assert "loss" not in names
    assert len(set(names)) == 7
    chart.turn_second(history, 1)
    chart.turn(history, 1)
    assert chart.main(history).name == "learning_rate"
    assert chart.second(history) is None
    chart.turn(history, -2)
    assert chart.data(view).measured == Measured(history.device_memory, "VRAM", "GB"), "the last curve"


def test_a_curve_that_the_next_run_lacks_waits_for_one_that_has_it(view: RunView, tmp_path: Path) -> None:
    other = run_of(tmp_path, temperature_c=None, power_w=None)
    assert "temperature" not in curves_of(other.history)
    chart = RunChart()
    for _ in range(4):
        chart.turn(view.history, 1)
    assert chart.main(view.history).name == "temperature"
    assert chart.main(other.history).name == "loss"
    assert chart.data(other).measured is None


def test_each_curve_has_its_own_kind_of_axis_and_temperatures_a_linear_one(view: RunView) -> None:
    chart, history = RunChart(), view.history
    chart.toggle_log(history)
    assert chart.is_logarithmic(chart.main(history))
    for name in ("learning_rate", "grad_norm", "tokens_per_second", "temperature"):
        chart.turn(history, 1)
        assert chart.main(history).name == name
        assert not chart.is_logarithmic(chart.main(history))
    chart.toggle_log(history)
    assert not chart.is_logarithmic(chart.main(history))
    chart.turn_second(history, 1)
    second = chart.data(view).second
    assert second is not None
    assert (second.name, second.log) == ("loss", True)


def test_marks_have_a_glyph_and_a_word_for_each_kind() -> None:
    kinds = [kind for kind in KINDS if KINDS[kind] and kind != "going_on"]
    marks = [ChartMark(5 + 6 * place, f"what {kind} did", kind) for place, kind in enumerate(kinds)]
    for glyphs in (BRAILLE, ASCII):
        assert len({glyphs.marks.get(kind, glyphs.event_mark) for kind in kinds}) == len(kinds)
        lines = draw(ChartData(series([1.0] * 60), marks=marks, total_steps=60), (220, 20), glyphs)
        for kind in kinds:
            glyph = glyphs.marks.get(kind, glyphs.event_mark)
            assert f"{glyph} {KINDS[kind]}" in lines[0]
            assert glyph in (lines[-2] if kind == "checkpoint" else lines[1])
    assert "‖ what paused did" in draw(ChartData(series([1.0] * 60), marks=marks, total_steps=60), (220, 20))[1]


def test_the_weightiest_mark_of_a_place_is_seen_and_what_is_hidden_has_no_legend() -> None:
    marks = [ChartMark(9, "paused on request", "paused"), ChartMark(9, "resumed on request", "going_on")]
    lines = draw(ChartData(series([1.0] * 60), marks=marks, total_steps=60), (120, 20))
    assert "‖ paused on request" in lines[1]
    assert "▷" not in "".join(lines)


def test_a_value_that_is_missing_is_read_out_as_a_dash() -> None:
    chart = LineChart()
    measured = Measured(series([70.0] * 20 + [math.nan] * 20), "temperature", "°C")
    chart.data, chart.cursor = ChartData(series([1.0] * 40), total_steps=40, measured=measured), 30
    assert "temperature – °C" in "".join(cell[0] for cell in chart._draw(80, 14).cells[0])


def test_the_cursor_reads_out_what_is_there(view: RunView) -> None:
    chart, curves, history = LineChart(), RunChart(), view.history
    curves.turn_second(history, -1)
    chart.data, chart.cursor = curves.data(view), 30
    top = "".join(cell[0] for cell in chart._draw(170, 20).cells[0])
    assert f"loss {history.loss.values[29]:.3f}" in top
    for text in ("step 30", "VRAM 18.2 GB", "smoothed 0.", "eval 0.500 @30", "checkpoint step-30", "paused on request"):
        assert text in top, text
    # Where there is less room, the first parts are there.
    narrow = "".join(cell[0] for cell in chart._draw(60, 12).cells[0])
    assert "step 30" in narrow
    assert "paused" not in narrow


def test_what_is_read_out_keeps_its_place_from_step_to_step(view: RunView) -> None:
    chart, curves = LineChart(), RunChart()
    curves.turn_second(view.history, -2)
    chart.data = curves.data(view)
    found = set()
    for step in range(1, 61):
        chart.cursor = step
        top = "".join(cell[0] for cell in chart._draw(100, 14).cells[0])
        found.add((top.index("step"), top.index("loss"), top.index("power"), top.index("smoothed")))
    assert len(found) == 1


def test_zoomed_the_axis_of_values_is_that_of_what_is_in_sight() -> None:
    chart = LineChart()
    chart.data = ChartData(
        series([100.0] * 10 + [1.0 + step / 100 for step in range(90)]), total_steps=100, is_over=True
    )
    assert max(chart._bounds()) == 100
    chart.zoom = Zoom(20.0, 90.0)
    assert 1.5 < min(chart._bounds()) < max(chart._bounds()) < 1.9
    labels = "".join(cell[0] for row in chart._draw(80, 14).cells for cell in row[:6])
    assert "100" not in labels
