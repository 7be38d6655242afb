"""The line chart as drawn: axes, line, gaps, marks, and few cells repainted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from textual.app import App, ComposeResult
from textual.geometry import Region

from core.runs.record.series import Series
from tests.cases import cases
from tests.tui.harness import screen_lines, wait_for
from themes.loader import variable_defaults
from tui.glyphs import ASCII, BLOCK, BRAILLE, GlyphSet
from tui.widgets.charts.chart_data import ChartData, ChartMark
from tui.widgets.charts.line_chart import LineChart


class ChartApp(App[None]):
    """An app with nothing but a chart."""

    def __init__(self, chart: LineChart) -> None:
        super().__init__()
        self.chart = chart

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return variable_defaults(True)

    def compose(self) -> ComposeResult:
        yield self.chart


def series(values: Sequence[float]) -> Series:
    """Data of a chart: values from step 1 on."""
    found = Series()
    for step, value in enumerate(values, 1):
        found.append(step, value)
    return found


def falling(count: int) -> Series:
    """A falling loss."""
    return series([2.0 * math.exp(-step / 30) + 0.4 for step in range(count)])


async def draw(data: ChartData, size: tuple[int, int] = (60, 14), glyphs: GlyphSet = BRAILLE) -> list[str]:
    """The lines of a chart."""
    chart = LineChart(glyphs)
    chart.data = data
    app = ChartApp(chart)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        return screen_lines(app)


async def test_axes_carry_round_values_and_the_curve_falls() -> None:
    lines = await draw(ChartData(falling(60), total_steps=60))
    assert any(line.startswith((" 2.0┤", "2.0┤")) for line in lines)
    assert lines[-2].count("┬") >= 3
    assert lines[-1].endswith("step 60")
    plot = [line[4:] for line in lines[:-2]]
    first = next(y for y, line in enumerate(plot) if line[1:6].strip("⠀ "))
    last = next(y for y, line in enumerate(plot) if y > 0 and line[-4:].strip("⠀ "))
    assert first < last


async def test_an_unfinished_run_leaves_room_for_what_is_to_come() -> None:
    lines = await draw(ChartData(falling(34), total_steps=120))
    assert all(not line[48:].strip("⠀ ") for line in lines[2:-2])


@cases("glyphs", [pytest.param(glyphs, id=glyphs.name) for glyphs in (BLOCK, ASCII)])
async def test_other_glyphs_draw_the_same_curve(glyphs: GlyphSet) -> None:
    lines = await draw(ChartData(falling(60), evals=series([1.0]), total_steps=60), glyphs=glyphs)
    text = "\n".join(lines)
    assert any(character in text for character in glyphs.line[1:])
    if glyphs is ASCII:
        assert text.isascii()


async def test_nan_is_a_gap_and_never_a_bound() -> None:
    values = [1.0] * 20 + [math.nan] * 20 + [1.0] * 20
    lines = await draw(ChartData(series(values), total_steps=60), size=(65, 12))
    row = max(lines[1:-2], key=lambda line: sum("⠀" < character <= "⣿" for character in line))
    assert row[30:40].strip("⠀ ") == ""
    assert row[10:20].strip("⠀ ") != ""


async def test_nothing_finite_is_an_empty_plot() -> None:
    lines = await draw(ChartData(series([math.nan, math.inf]), total_steps=10))
    assert not any("◆" in line or "⠁" in line for line in lines)


async def test_evaluations_and_events_are_marked_with_words() -> None:
    evals = Series()
    evals.append(30, 1.0)
    lines = await draw(ChartData(falling(60), evals, [ChartMark(20, "batch 8→4 (memory)")], 60), size=(80, 16))
    assert sum(line.count("◆") for line in lines[1:]) == 1
    assert "▼ batch 8→4 (memory)" in lines[1]
    assert "each step ─  smoothed ━  eval ◆" in lines[0]


async def test_the_probe_has_a_mark_of_its_own_and_a_place_on_the_axis() -> None:
    probe = Series()
    probe.append(0, 9.0)
    probe.append(30, 9.5)
    chart = ChartData(falling(60), total_steps=60, probe=probe)
    lines = await draw(chart, size=(80, 16))
    assert sum(line.count("◇") for line in lines) == 3, "two values, and the legend"
    assert "probe ◇" in lines[0]
    assert "eval" not in lines[0]
    probe.append(60, 1.0)
    assert ChartData(falling(60), total_steps=60, probe=probe).version != ChartData(falling(60), total_steps=60).version


async def test_a_short_run_is_one_line_of_its_own_values() -> None:
    data = ChartData(falling(20), total_steps=25, marks=[ChartMark(20, "stopped")], is_over=True)
    lines = await draw(data, size=(80, 14))
    assert "loss ━" in lines[0]
    assert "smoothed" not in lines[0]
    assert "▼ stopped" in lines[1]
    assert lines[-1].endswith("step 25")


async def test_raw_values_are_a_line_of_their_own_below_the_smoothed_one() -> None:
    chart = LineChart()
    chart.data = ChartData(series([1.0 + step % 2 for step in range(100)]), total_steps=100)
    frame = chart._draw(80, 20)
    styles = [[cell[1] for cell in row] for row in frame.cells]
    assert sum(row.count("raw") for row in styles) > 300
    smooth = [y for y, row in enumerate(styles[1:]) for style in row[20:] if style == "smooth"]
    assert len(smooth) > 50
    assert 5 <= min(smooth) <= max(smooth) <= 12, "in the middle of what goes up and down"


async def test_the_log_axis_is_named_and_has_powers() -> None:
    chart = LineChart()
    chart.data = ChartData(series([10.0 ** (2 - step / 15) for step in range(60)]), total_steps=60)
    app = ChartApp(chart)
    async with app.run_test(size=(80, 20)) as pilot:
        await pilot.pause()
        assert "log axis" not in screen_lines(app)[0]
        chart.log_axis = True
        await wait_for(pilot, lambda: "log axis" in screen_lines(app)[0])
        text = "\n".join(screen_lines(app))
        for label in ("0.1┤", " 1┤", "10┤"):
            assert label in text


@cases("size", [(1, 1), (11, 3), (12, 4), (200, 50)])
async def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    lines = await draw(ChartData(falling(200), total_steps=1000), size=size)
    assert all(len(line) == size[0] for line in lines)


async def test_only_what_changed_is_painted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = LineChart()
    chart.data = ChartData(falling(50), total_steps=120)
    app = ChartApp(chart)
    async with app.run_test(size=(100, 24)) as pilot:
        await pilot.pause()
        painted: list[Region] = []
        monkeypatch.setattr(chart, "refresh", lambda *regions, **_: painted.extend(regions))
        chart.show(ChartData(falling(50), total_steps=120))
        assert painted == []
        chart.show(ChartData(falling(51), total_steps=120))
        assert 0 < sum(region.area for region in painted) <= 12


async def test_many_points_are_drawn_quickly_enough_to_be_live() -> None:
    chart = LineChart()
    chart.data = ChartData(falling(100_000), total_steps=100_000)
    frame = chart._draw(150, 30)
    assert any(cell[1] == "smooth" for row in frame.cells for cell in row)
