"""Sparklines."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.cases import cases
from tui.glyphs import ASCII, BRAILLE
from tui.widgets.charts.bars import sparkline


@cases(
    ("values", "width", "shown"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([3.0, 1.0, 1.0], 9, "█▁▁"),
        ([2.0, 2.0], 9, "▁▁"),
        ([1.0, math.nan, 2.0], 9, "▁ █"),
        (list(range(101)), 3, "▁▅█"),
        ([math.nan], 3, " "),
        ([], 3, ""),
        ([1.0], 0, ""),
    ],
)
def test_values_are_bars(values: list[float], width: int, shown: str) -> None:
    assert sparkline(values, width, BRAILLE) == shown


@given(st.lists(st.floats(), max_size=40), st.integers(0, 20))
def test_any_values_are_drawn(values: list[float], width: int) -> None:
    text = sparkline(values, width, ASCII)
    assert len(text) == min(len(values), width)
    assert text.isascii()
