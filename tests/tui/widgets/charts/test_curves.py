"""Overlaid curves, identified by letters alone, over steps, tokens and time."""

from __future__ import annotations

import math

import pytest

from core.runs.record.series import Series
from tests.cases import cases
from tests.tui.widgets.charts.test_line_chart import draw, series
from tui.glyphs import ASCII, BLOCK, BRAILLE, GlyphSet
from tui.widgets.charts.chart_data import STEPS, TIME, TOKENS, ChartData, Curve, short_time, short_tokens


def curves(count: int, length: int = 100) -> list[Curve]:
    return [
        Curve(
            "ABCDEF"[place], f"run {place}", series([place + 2 * math.exp(-x / 30) for x in range(length)]), place + 1
        )
        for place in range(count)
    ]


@cases("glyphs", [pytest.param(glyphs, id=glyphs.name) for glyphs in (BRAILLE, BLOCK, ASCII)])
@cases("count", [2, 6])
async def test_every_curve_has_its_letter_on_it_and_in_the_legend(count: int, glyphs: GlyphSet) -> None:
    lines = await draw(ChartData(curves=curves(count), total_steps=100, is_over=True), (100, 24), glyphs)
    for letter in "ABCDEF"[:count]:
        assert letter in lines[0]
        assert sum(line.count(letter) for line in lines[1:-2]) >= 2, letter
    if glyphs is ASCII:
        assert "\n".join(lines).isascii()


async def test_letters_of_equal_curves_stand_apart() -> None:
    same = series([2 * math.exp(-x / 30) for x in range(100)])
    pair = [Curve("A", "one", same, 1), Curve("B", "other", same, 2)]
    lines = await draw(ChartData(curves=pair, total_steps=100, is_over=True), (100, 20))
    plot = "\n".join(lines[1:-2])
    assert "A" in plot
    assert "B" in plot


async def test_a_curve_without_values_is_named_so() -> None:
    pair = [*curves(1), Curve("B", "empty", Series(), 2)]
    lines = await draw(ChartData(curves=pair, total_steps=100, is_over=True), (80, 16))
    assert "B empty –" in lines[0]


async def test_long_names_are_cut_and_then_left_out() -> None:
    many = [Curve(curve.letter, "a very long name of a run " * 3, curve.series, curve.color) for curve in curves(6)]
    for width in (40, 60, 100, 200):
        lines = await draw(ChartData(curves=many, total_steps=100, is_over=True), (width, 16))
        assert all(len(line) == width for line in lines)
        assert all(letter in lines[0] for letter in "ABCDEF")


@cases("size", [(12, 4), (20, 5), (13, 6)])
async def test_a_tiny_chart_is_drawn(size: tuple[int, int]) -> None:
    assert await draw(ChartData(curves=curves(6), total_steps=100, is_over=True), size)


async def test_axes_have_units() -> None:
    tokens = Series()
    for place in range(1, 60):
        tokens.append(place * 40_000, 1.0 / place)
    pair = [Curve("A", "a", tokens, 1), Curve("B", "b", tokens, 2)]
    lines = await draw(ChartData(curves=pair, total_steps=2_360_000, is_over=True, x_axis=TOKENS), (90, 16))
    assert lines[-1].endswith("2.36M tokens")
    assert "500k" in lines[-1]
    assert "1.5M" in lines[-1]
    lines = await draw(ChartData(curves=pair, total_steps=2_360_000, is_over=True, x_axis=TIME), (90, 16))
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


def test_labels_of_tokens_and_times_are_short() -> None:
    assert [short_tokens(count) for count in (0, 800, 20_000, 1_500_000, 2e9)] == ["0", "800", "20k", "1.5M", "2B"]
    assert [short_time(seconds) for seconds in (0.5, 30, 300, 5400, 7200)] == ["0.5s", "30s", "5m", "1h 30m", "2h"]
