"""Plot geometry without any widget: scales, ticks and dots."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.runs.series import Series
from tui.glyphs import ASCII, BLOCK, BRAILLE, GlyphSet
from tui.widgets.charts import plot_geometry as geometry
from tui.widgets.charts.plot_geometry import DotGrid, Scale


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 10, 6, [0, 2, 4, 6, 8, 10]),
        (0.38, 2.4, 5, [0.5, 1.0, 1.5, 2.0]),
        (1, 120, 4, [50, 100]),
        (5, 5, 4, []),
        (0, 1, 0, []),
    ],
)
def test_nice_ticks(low: float, high: float, most: int, expected: list[float]) -> None:
    assert geometry.nice_ticks(low, high, most) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 12))
def test_nice_ticks_lie_inside_and_are_not_too_many(low: float, span: float, most: int) -> None:
    ticks = geometry.nice_ticks(low, low + span, most)
    assert len(ticks) <= most
    # For a range that is tiny compared to its place, the ticks are as exact as floats are there.
    slack = span * 1e-6 + 4 * math.ulp(low)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@given(st.floats() | st.integers(-(2**64), 2**64), st.floats() | st.integers(-(2**64), 2**64))
@example(-288230376151711745, -2.8823037615171174e17)  # unequal as numbers, yet nothing apart as floats
@example(0.0, 5e-324)
@example(-1.7e308, 1.7e308)
def test_nice_ticks_hold_any_range(low: float, high: float) -> None:
    assert len(geometry.nice_ticks(low, high, 7)) <= 7


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [(0.1, 100, 6, [0.1, 1, 10, 100]), (0.4, 2.5, 5, [0.5, 0.7, 1, 2]), (1e-8, 1e8, 4, [1e-8, 1e-3, 1e2, 1e7])],
)
def test_log_ticks(low: float, high: float, most: int, expected: list[float]) -> None:
    ticks = geometry.log_ticks(low, high, most)
    assert len(ticks) <= most
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)
    if most != 5:
        assert ticks == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 1.0, 1.5], ["0.5", "1.0", "1.5"]),
        ([0, 20, 40], ["0", "20", "40"]),
        ([5000, 10000], ["5000", "10k"]),
        ([0.25, 0.5], ["0.25", "0.50"]),
        ([1e-5, 1e-4], ["1e-5", "1e-4"]),
        ([], []),
    ],
)
def test_tick_labels(values: list[float], expected: list[str]) -> None:
    assert geometry.tick_labels(values) == expected


def test_a_value_scale_ignores_what_is_not_finite_and_keeps_the_floor() -> None:
    scale = geometry.value_scale([math.nan, 0.0, math.inf, 2.0])
    assert (scale.low, scale.log) == (0.0, False)
    assert 2.0 < scale.high <= 2.2


def test_a_log_scale_needs_something_positive() -> None:
    assert geometry.value_scale([-1.0, 0.0], log=True).log is False
    scale = geometry.value_scale([0.0, 0.01, 10.0], log=True)
    assert scale.log
    assert scale.fraction(0.0) is None
    assert scale.fraction(math.sqrt(0.01 * 10.0)) == pytest.approx(0.5)


def test_a_new_extreme_mostly_leaves_the_scale_alone() -> None:
    scales = {geometry.value_scale([2.4, 0.9 - step * 0.001]) for step in range(400)}
    assert len(scales) < 12


def test_equal_values_still_make_an_axis() -> None:
    scale = geometry.value_scale([1.0, 1.0])
    assert scale.low < 1.0 < scale.high


@pytest.mark.parametrize(("last", "total", "high"), [(1, 120, 11), (34, 120, 51), (100, 120, 120), (120, 120, 120)])
def test_the_step_window_grows_towards_the_total(last: int, total: int, high: float) -> None:
    assert geometry.step_window(1, last, total).high == high


def test_the_step_window_moves_in_few_jumps() -> None:
    ends = {geometry.step_window(1, last, 5000).high for last in range(1, 5001)}
    assert len(ends) < 25


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_step_window_holds_every_step(first: int, more: int, total: int) -> None:
    window = geometry.step_window(first, first + more, total)
    assert window.low <= first
    assert first + more <= window.high
    assert window.low < window.high


@pytest.mark.parametrize("glyphs", [BRAILLE, BLOCK, ASCII], ids=lambda glyphs: glyphs.name)
def test_every_pattern_of_dots_has_a_character(glyphs: GlyphSet) -> None:
    patterns = 1 << (glyphs.columns * glyphs.rows)
    assert len(glyphs.line) == len(glyphs.points) == patterns
    assert glyphs.line[0] in " \u2800"


def test_ascii_is_ascii() -> None:
    assert all(
        text.isascii()
        for text in (ASCII.line, ASCII.points, ASCII.eval_mark, ASCII.event_mark, ASCII.vertical, ASCII.bar_full)
    )


def test_braille_dots_are_where_they_should_be() -> None:
    grid = DotGrid(1, 1, BRAILLE)
    grid.set(0, 3)
    assert BRAILLE.line[grid.bits[0][0]] == "⠁"
    grid.set(1, 0)
    assert BRAILLE.line[grid.bits[0][0]] == "⢁"
    grid.set(5, 0)
    grid.set(0, -1)
    assert BRAILLE.line[grid.bits[0][0]] == "⢁"


def _columns(grid: DotGrid) -> list[set[int]]:
    """The heights of the dots of each column, from the bottom."""
    found: list[set[int]] = [set() for _ in range(grid.columns)]
    for row, cells in enumerate(grid.bits):
        for cell, pattern in enumerate(cells):
            for index in range(grid.glyphs.columns * grid.glyphs.rows):
                if pattern >> index & 1:
                    down, across = divmod(index, grid.glyphs.columns)
                    height = grid.rows - 1 - (row * grid.glyphs.rows + down)
                    found[cell * grid.glyphs.columns + across].add(height)
    return found


@given(st.integers(0, 15), st.integers(0, 15), st.integers(1, 19))
def test_a_line_has_no_holes(y0: int, y1: int, run: int) -> None:
    grid = DotGrid(10, 4, BRAILLE)
    grid.line(0, y0, run, y1)
    columns = _columns(grid)[: run + 1]
    assert y0 in columns[0]
    assert y1 in columns[-1]
    for left, right in pairwise(columns):
        assert right
        assert min(abs(a - b) for a in left for b in right) <= 1
        assert right == set(range(min(right), max(right) + 1))


def test_a_nan_leaves_a_gap_in_the_line() -> None:
    series = Series(0.0)
    for step, value in enumerate([1.0, 1.0, math.nan, 1.0, 1.0]):
        series.append(step, value)
    grid = DotGrid(10, 2, BRAILLE)
    geometry.draw_line(grid, series.bucket(20, 0, 4, smooth=True), Scale(0.0, 2.0))
    filled = [bool(column) for column in _columns(grid)]
    assert all(filled[:5])
    assert not any(filled[6:14])
    assert all(filled[15:])
