"""Sparklines and histograms."""

from __future__ import annotations

import itertools
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from core.analysis.result import Bucket
from tests.cases import cases
from tui.glyphs import ASCII, BRAILLE
from tui.widgets.charts.bars import draw_histogram, sparkline


def test_labels_are_evenly_spaced() -> None:
    buckets = [Bucket(low, low + 80, 57 if not low else 0) for low in range(0, 1280, 80)]
    axis = draw_histogram(buckets, 76, 5)[-1]
    places = [match.start() for match in re.finditer(r"[\d,]+", axis)]
    assert len(places) > 4
    assert len({after - before for before, after in itertools.pairwise(places)}) == 1
    assert "1,120 tokens" in axis


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
