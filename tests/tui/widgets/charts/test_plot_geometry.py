"""Plot geometry without any widget: scales, ticks and dots."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from tests.cases import cases
from tui.glyphs import BRAILLE
from tui.widgets.charts import plot_geometry as geometry
from tui.widgets.charts.plot_geometry import DotGrid, Scale

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


def test_ends_further_apart_than_a_float_reaches_make_an_axis() -> None:
    scale = Scale(-1e308, 1e308)
    assert [scale.dot(value, 21) for value in (-1e308, 0.0, 1e308)] == [0, 10, 20]
