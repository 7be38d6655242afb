"""The line chart as drawn: axes, line, overlaid curves, gaps, marks, zoom, and few cells repainted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from textual.geometry import Region

from core.runs.record import events
from core.runs.record.history import read_history
from core.runs.record.series import Series
from tests.cases import cases
from tests.tui.harness import Stage
from tests.tui.scripted_run import GPU, ScriptedRun
from tui.glyphs import ASCII, BLOCK, BRAILLE, GlyphSet
from tui.state import RunView
from tui.widgets.charts import plot_geometry as geometry
from tui.widgets.charts.chart_data import STEPS, TIME, TOKENS, ChartData, ChartMark, Curve, Measured
from tui.widgets.charts.line_chart import FEWEST, LineChart, RunChart, Zoom, curves_of
from tui.widgets.charts.plot import KINDS
from tui.widgets.charts.plot_geometry import Scale

WHOLE = Scale(1.0, 1001.0)
#: Actions of the keys: zoom, pan, and keep a step in sight.
KEYS = st.lists(st.tuples(st.sampled_from("+-<>h"), st.integers(-50, 2000)), max_size=30)


def press(zoom: Zoom, key: str, step: int, whole: Scale, newest: float) -> Zoom:
    if key in "+-":
        return zoom.scaled(0.5 if key == "+" else 2.0, whole, newest, step if step > 0 else None)
    if key in "<>":
        return zoom.panned(-1 if key == "<" else 1, whole, newest)
    return zoom.holding(min(max(step, whole.low), newest), whole, newest)


@given(KEYS, st.integers(0, 5), st.integers(1, 10**6), st.floats(0, 1))
def test_whatever_is_pressed_the_part_is_on_the_axis(
    keys: list[tuple[str, int]], low: int, length: int, done: float
) -> None:
    whole, zoom = Scale(float(low), float(low + length)), Zoom()
    newest = float(low + round(length * done))
    for key, step in keys:
        zoom = press(zoom, key, step, whole, newest)
        window = zoom.window(whole, newest)
        assert whole.low <= window.low < window.high <= whole.high
        assert window.high - window.low >= min(FEWEST, length)
        assert (window.low, window.high) == (int(window.low), int(window.high))
        if key == "h":
            assert window.low <= min(max(step, whole.low), newest) <= window.high


@given(st.integers(1, 1001), st.integers(1, 5))
def test_the_cursor_stays_where_it_is(step: int, times: int) -> None:
    zoom = Zoom()
    for _ in range(times):
        before = zoom.window(WHOLE, 1001)
        zoom = zoom.scaled(0.5, WHOLE, 1001, step)
        window = zoom.window(WHOLE, 1001)
        shares = [(step - each.low) / (each.high - each.low) for each in (before, window)]
        # Steps are whole.
        assert abs(shares[0] - shares[1]) <= 1 / (window.high - window.low)


def test_without_a_cursor_the_newest_steps_are_shown_and_followed_in_jumps() -> None:
    zoom = Zoom().scaled(0.5, WHOLE, 700).scaled(0.5, WHOLE, 700)
    windows = [zoom.window(WHOLE, newest) for newest in range(700, 801)]
    assert all(window.low <= newest <= window.high for newest, window in zip(range(700, 801), windows, strict=True))
    assert len(set(windows)) <= 5
    assert all(window.high - window.low == 250 for window in windows)


def test_panning_back_stands_still_and_panning_on_follows_again() -> None:
    zoom = Zoom(200.0)
    back = zoom.panned(-1, WHOLE, 600).panned(-1, WHOLE, 600)
    assert back.window(WHOLE, 600) == back.window(WHOLE, 900)
    assert back.window(WHOLE, 600).high == 500
    assert back.panned(1, WHOLE, 600).panned(1, WHOLE, 600) == zoom
    assert Zoom().panned(-1, WHOLE, 600) == Zoom(), "where all is shown there is nothing to pan"


def series(values: Sequence[float]) -> Series:
    """Data of a chart: values from step 1 on."""
    found = Series()
    for step, value in enumerate(values, 1):
        found.append(step, value)
    return found


def falling(count: int) -> Series:
    """A falling loss."""
    return series([2.0 * math.exp(-step / 30) + 0.4 for step in range(count)])


def draw(data: ChartData, size: tuple[int, int] = (60, 14), glyphs: GlyphSet = BRAILLE, log: bool = False) -> list[str]:
    """The lines of a chart."""
    chart = LineChart(glyphs)
    chart.data, chart.log_axis = data, log
    return ["".join(character for character, _ in row) for row in chart._draw(*size).cells]


def test_nan_is_a_gap_and_never_a_bound() -> None:
    values = [1.0] * 20 + [math.nan] * 20 + [1.0] * 20
    lines = draw(ChartData(series(values), total_steps=60), size=(65, 12))
    row = max(lines[1:-2], key=lambda line: sum("⠀" < character <= "⣿" for character in line))
    assert row[30:40].strip("⠀ ") == ""
    assert row[10:20].strip("⠀ ") != ""


def test_the_probe_has_a_mark_of_its_own_and_a_place_on_the_axis() -> None:
    probe = Series()
    probe.append(0, 9.0)
    probe.append(30, 9.5)
    chart = ChartData(falling(60), total_steps=60, probe=probe)
    lines = draw(chart, size=(80, 16))
    assert sum(line.count("◇") for line in lines) == 3, "two values, and the legend"
    assert "probe ◇" in lines[0]
    assert "eval" not in lines[0]
    probe.append(60, 1.0)
    assert ChartData(falling(60), total_steps=60, probe=probe).version != ChartData(falling(60), total_steps=60).version


def test_the_log_axis_is_named_and_has_powers() -> None:
    data = ChartData(series([10.0 ** (2 - step / 15) for step in range(60)]), total_steps=60)
    lines = draw(data, (80, 20), log=True)
    assert "log axis" in lines[0]
    assert "log axis" not in draw(data, (80, 20))[0]
    assert all(label in "\n".join(lines) for label in ("0.1┤", " 1┤", "10┤"))


@cases("size", [(1, 1), (11, 3), (12, 4), (13, 6), (20, 5), (200, 50)])
def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    for data in (ChartData(falling(200), total_steps=1000), ChartData(curves=curves(6), total_steps=100, is_over=True)):
        assert all(len(line) == size[0] for line in draw(data, size=size))


async def test_only_what_changed_is_painted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = LineChart()
    chart.data = ChartData(falling(50), total_steps=120)
    app = Stage(chart)
    async with app.run_test(size=(100, 24)) as pilot:
        await pilot.pause()
        painted: list[Region] = []
        monkeypatch.setattr(chart, "refresh", lambda *regions, **_: painted.extend(regions))
        chart.show(ChartData(falling(50), total_steps=120))
        assert painted == []
        chart.show(ChartData(falling(51), total_steps=120))
        assert 0 < sum(region.area for region in painted) <= 12


def curves(count: int, length: int = 100) -> list[Curve]:
    return [
        Curve(
            "ABCDEF"[place], f"run {place}", series([place + 2 * math.exp(-x / 30) for x in range(length)]), place + 1
        )
        for place in range(count)
    ]


@cases("glyphs", [pytest.param(glyphs, id=glyphs.name) for glyphs in (BRAILLE, BLOCK, ASCII)])
@cases("count", [2, 6])
def test_every_curve_has_its_letter_on_it_and_in_the_legend(count: int, glyphs: GlyphSet) -> None:
    lines = draw(ChartData(curves=curves(count), total_steps=100, is_over=True), (100, 24), glyphs)
    for letter in "ABCDEF"[:count]:
        assert letter in lines[0]
        assert sum(line.count(letter) for line in lines[1:-2]) >= 2, letter
    if glyphs is ASCII:
        assert "\n".join(lines).isascii()


def test_letters_of_equal_curves_stand_apart() -> None:
    same = series([2 * math.exp(-x / 30) for x in range(100)])
    pair = [Curve("A", "one", same, 1), Curve("B", "other", same, 2)]
    lines = draw(ChartData(curves=pair, total_steps=100, is_over=True), (100, 20))
    plot = "\n".join(lines[1:-2])
    assert "A" in plot
    assert "B" in plot


def test_a_curve_without_values_is_named_so() -> None:
    pair = [*curves(1), Curve("B", "empty", Series(), 2)]
    lines = draw(ChartData(curves=pair, total_steps=100, is_over=True), (80, 16))
    assert "B empty –" in lines[0]


def test_long_names_are_cut_and_then_left_out() -> None:
    many = [Curve(curve.letter, "a very long name of a run " * 3, curve.series, curve.color) for curve in curves(6)]
    for width in (40, 60, 100, 200):
        lines = draw(ChartData(curves=many, total_steps=100, is_over=True), (width, 16))
        assert all(len(line) == width for line in lines)
        assert all(letter in lines[0] for letter in "ABCDEF")


def test_axes_have_units() -> None:
    tokens = Series()
    for place in range(1, 60):
        tokens.append(place * 40_000, 1.0 / place)
    pair = [Curve("A", "a", tokens, 1), Curve("B", "b", tokens, 2)]
    lines = draw(ChartData(curves=pair, total_steps=2_360_000, is_over=True, x_axis=TOKENS), (90, 16))
    assert lines[-1].endswith("2.36M tokens")
    assert "500k" in lines[-1]
    assert "1.5M" in lines[-1]
    lines = draw(ChartData(curves=pair, total_steps=2_360_000, is_over=True, x_axis=TIME), (90, 16))
    assert lines[-1].endswith("39m 20s of steps")
    assert "10m " in lines[-1]


@cases("axis", [STEPS, TOKENS, TIME])
@cases("span", [1, 7, 999, 60_000, 3_600_000, 10**9, 10**12])
def test_ticks_are_few_inside_and_rising(axis: object, span: int) -> None:
    ticks = axis.ticks(1.0, 1.0 + span, 8)  # type: ignore[attr-defined]
    places = [place for place, _ in ticks]
    assert len(places) <= 9
    assert places == sorted(set(places))
    assert all(0 <= place <= 1.0 + span for place in places)
    assert len({label for _, label in ticks}) == len(ticks)


# Scales and ticks, without a widget.

VALUES = st.lists(st.floats() | st.floats(1e-3, 1e3), min_size=1, max_size=4)


@given(VALUES, st.integers(2, 40), st.sampled_from([1, 2, 4]), st.booleans())
@example([1.7e308, -1.7e308], 10, 4, False)
@example([5e-324, 1.7e308], 10, 4, True)
@example([1e6, 1e6 + 1e-6], 10, 4, False)
@example([-288230376151711745, -2.8823037615171174e17], 10, 4, False)  # unequal, yet nothing apart as floats
def test_an_axis_has_evenly_spaced_labels_and_holds_every_value(
    values: list[float], rows: int, dots: int, log: bool
) -> None:
    axis = geometry.value_axis(values, rows, dots, log)
    scale = axis.scale
    assert scale.low < scale.high
    places = [row for row, _ in axis.ticks]
    assert all(0 <= row < rows for row in places)
    assert len({b - a for a, b in pairwise(places)}) <= 1
    for value in values:
        if math.isfinite(value) and 1e-290 < abs(value) < 1e290 and (value > 0 or not scale.log):
            position = (value - scale.low) / (scale.high - scale.low) if not scale.log else 0.5
            assert -0.02 - 1 / (rows * dots) <= position <= 1.02 + 1 / (rows * dots)


@cases(
    ("values", "rows", "log", "labels"),
    [
        ([0.38, 2.4], 10, False, ["0.5", "1.0", "1.5", "2.0", "2.5"]),
        ([0.05, 4.1], 12, False, ["0", "2", "4"]),
        ([2.4, 2.5], 8, False, ["2.40", "2.45", "2.50"]),
        ([0.01, 90.0], 14, True, ["0.01", "0.1", "1", "10", "100"]),
        ([0.03, 4.3], 30, True, ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"]),
        ([0.4, 2.5], 10, True, ["0.5", "1.0", "2.0"]),
        ([100, 42_000], 10, False, ["0", "10k", "20k", "30k", "40k"]),
        ([1e-5, 0.01], 10, True, ["1e-5", "1e-4", "1e-3", "1e-2"]),
    ],
)
def test_labels_of_an_axis_are_round(values: list[float], rows: int, log: bool, labels: list[str]) -> None:
    axis = geometry.value_axis(values, rows, 4, log)
    assert geometry.tick_labels([value for _, value in axis.ticks]) == labels
    # Each stands at the row that a dot of its value is in.
    for row, value in axis.ticks:
        dot = axis.scale.dot(value, rows * 4)
        assert dot is not None
        assert abs(dot - (row * 4 + 2)) <= 2


def test_a_log_axis_needs_something_positive() -> None:
    assert geometry.value_axis([-1.0, 0.0], 10, 4, log=True).scale.log is False
    scale = geometry.value_axis([0.0, 0.01, 10.0], 10, 4, log=True).scale
    assert scale.log
    assert scale.fraction(0.0) is None
    assert scale.low <= 0.01 < 10.0 <= scale.high * 1.2


def test_a_new_extreme_mostly_leaves_the_axis_alone() -> None:
    scales = {geometry.value_axis([2.4, 0.9 - step * 0.001], 12, 4).scale for step in range(400)}
    assert len(scales) < 12


@cases(
    ("last", "total", "high"),
    [(1, 120, 61), (34, 120, 120), (120, 120, 120), (1, 50, 50), (300, 5000, 801), (700, 5000, 5000)],
)
def test_the_step_window_grows_towards_the_total(last: int, total: int, high: float) -> None:
    assert geometry.step_window(1, last, total).high == high
    assert geometry.step_window(1, last, total, is_over=True).high == total


def test_the_step_window_moves_in_few_jumps() -> None:
    ends = {geometry.step_window(1, last, 5000).high for last in range(1, 5001)}
    assert len(ends) < 25


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
def test_the_step_window_holds_every_step(first: int, more: int, total: int, over: bool) -> None:
    window = geometry.step_window(first, first + more, total, is_over=over)
    assert window.low <= first
    assert first + more <= window.high
    assert window.low < window.high


def test_ends_further_apart_than_a_float_reaches_make_an_axis() -> None:
    scale = Scale(-1e308, 1e308)
    assert [scale.dot(value, 21) for value in (-1e308, 0.0, 1e308)] == [0, 10, 20]


def run_of(home: Path, **device: Any) -> RunView:
    """A run of 60 steps, with a sample of its device after each, a checkpoint and a pause."""
    script = ScriptedRun(home, total=60, start=1_795_530_960.0)
    script.begin()
    for step in range(1, 61):
        script.steps(step, step)
        script.hardware(replace(GPU, **{"temperature_c": 50.0 + step / 3, **device}))
        if step == 30:
            script.checkpoint(step)
            script.evaluate(step, 0.5)
            for name in ("pause", "resume"):
                script.write(events.ControlEvent(t=script.pass_time(3), command=name, sender="socket", result="ok"))
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


def test_the_legend_names_every_mark_in_a_narrow_or_low_chart() -> None:
    evals, probe = series([math.nan] * 30 + [0.9]), series([math.nan] * 30 + [1.1])
    marks = [ChartMark(30, "checkpoint step-30", "checkpoint")]
    data = ChartData(falling(60), evals, probe=probe, marks=marks, total_steps=60)
    for size, words in (
        ((76, 5), "▲ checkpoint  each step ─  smoothed ━  eval ◆  probe ◇"),
        ((56, 14), "▲ saved step ─"),
    ):
        top = draw(data, size)[0]
        assert words in top
        assert all(mark in top for mark in "━◆◇"), top


def test_the_axis_stands_still_from_the_first_step_on() -> None:
    losses = [12.1312, 12.1309, 11.87, 9.4, 5.1, 2.238, 2.21, 0.9, 0.412, 0.4119]
    found = {
        line.index("└") for count in range(1, 11) for line in draw(ChartData(series(losses[:count]))) if "└" in line
    }
    assert len(found) == 1


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
