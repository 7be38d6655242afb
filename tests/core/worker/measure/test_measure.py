"""Growths that are fitted to measured sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.models.architecture.measuring import Growth, peak_at
from core.worker.measure.measure import fit_around, fit_layer, fit_scan

COUNTS = st.integers(0, 1 << 20)


@given(COUNTS, COUNTS, COUNTS)
def test_the_growth_of_a_layer_is_found_from_three_sizes(once: int, per_token: int, per_pair: int) -> None:
    growth = Growth(once, per_token, per_pair)
    sizes = [(2, 512), (4, 512), (2, 1024)]
    found = fit_layer([(rows, length, growth.at(rows * length, length)) for rows, length in sizes])
    for rows, length in ((1, 64), (3, 2048), (7, 16_384)):
        assert found.at(rows * length, length) == pytest.approx(growth.at(rows * length, length), rel=1e-6, abs=1)


@given(COUNTS, COUNTS, st.integers(-(1 << 20), 0))
def test_the_growth_of_a_scan_is_found_from_rows_that_double(once: int, per_token: int, per_row: int) -> None:
    growth = Growth(once, per_token, per_row=per_row)
    sizes = [(2, 128), (4, 128), (2, 256), (2, 512)]
    for found in fit_scan([(rows, length, growth.at(rows * length, length)) for rows, length in sizes]):
        for rows, length in ((1, 64), (3, 2048), (7, 16_384)):
            assert found.at(rows * length, length) == pytest.approx(growth.at(rows * length, length), rel=1e-6, abs=1)


def test_the_peak_of_a_scan_is_the_larger_of_what_peaks_in_short_and_in_long_rows() -> None:
    short, long = Growth(0, 100, per_row=10_000), Growth(0, 140, per_row=-100)
    sizes = [(2, 128), (4, 128), (2, 256), (2, 512)]
    found = fit_scan([(rows, n, peak_at((short, long), rows * n, n)) for rows, n in sizes])
    for rows, length in ((1, 4096), (2, 512), (8, 128)):
        tokens = rows * length
        assert peak_at(found, tokens, length) == pytest.approx(peak_at((short, long), tokens, length), rel=1e-6)


@given(COUNTS, COUNTS, COUNTS, COUNTS, st.integers(0, 64))
def test_what_is_for_all_rows_is_told_from_what_is_for_each(
    once: int, per_token: int, per_pair: int, per_column: int, per_square: int
) -> None:
    growth = Growth(once, per_token, per_pair, per_column, per_square)
    sizes = [(2, 512), (4, 512), (2, 1024), (4, 1024), (2, 768)]
    found = fit_around([(rows, length, growth.at(rows * length, length)) for rows, length in sizes])
    for rows, length in ((1, 64), (3, 2048), (7, 16_384)):
        assert found.at(rows * length, length) == pytest.approx(growth.at(rows * length, length), rel=1e-6, abs=64)
