"""Largest micro-batch from runs of lengths, against all possible micro-batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.analysis.result import measure_lengths
from core.memory.batching import (
    LENGTH_MULTIPLE,
    LOGITS_BYTES,
    chunk_positions,
    largest_shape,
    length_runs,
    padded_length,
    runs_of_histogram,
)
from core.memory.rows import Rows, rows_of_lengths, rows_of_tokens

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80)


@given(LENGTHS, st.integers(1, 16), st.integers(8, 3000), st.none() | st.integers(1, 8))
def test_no_micro_batch_is_larger(lengths: list[int], batch_size: int, budget: int, max_rows: int | None) -> None:
    before, rows, width = largest_shape(length_runs(lengths), batch_size, budget, max_rows)
    ordered = sorted(map(padded_length, lengths), reverse=True)
    assert ordered[before] == width
    assert before + rows <= len(lengths)
    possible = [ordered[0]]
    for start in range(len(ordered)):
        count = min(batch_size, max_rows or batch_size, len(ordered) - start)
        possible += [size * ordered[start] for size in range(1, count + 1) if size * ordered[start] <= budget]
    assert rows * width == max(possible)


@given(LENGTHS)
def test_runs_count_every_row(lengths: list[int]) -> None:
    runs = length_runs(lengths)
    assert sum(count for _, count in runs) == len(lengths)
    assert [width for width, _ in runs] == sorted({padded_length(length) for length in lengths}, reverse=True)
    assert all(width % LENGTH_MULTIPLE == 0 for width, _ in runs)


@given(LENGTHS, st.integers(1, 16), st.integers(8, 3000))
def test_a_histogram_never_makes_the_micro_batch_smaller(lengths: list[int], batch_size: int, budget: int) -> None:
    measured = measure_lengths(lengths, list(range(len(lengths))), sum(lengths), sum(lengths) // 2)
    assert measured is not None
    rough = rows_of_lengths(measured)
    assert rough.count == len(lengths)
    assert rough.runs[0][0] == padded_length(max(lengths))
    _, rows, width = largest_shape(length_runs(lengths), batch_size, budget)
    _, rough_rows, rough_width = rough.largest_shape(batch_size, budget)
    # Down to whole multiples, of which each row of it may lose one.
    assert rough_rows * rough_width >= rows * width - LENGTH_MULTIPLE * rough_rows
    assert rough_rows * rough_width <= max(budget, rough.runs[0][0])


def test_bars_of_one_padded_length_are_one_run() -> None:
    assert runs_of_histogram([(3, 2), (8, 1), (9, 0), (17, 4)]) == [(24, 4), (8, 3)]


def test_rows_beyond_the_limit_are_dropped_or_cut() -> None:
    rows = rows_of_tokens([10, 20, 100], supervised=65)
    assert rows.supervised == 0.5
    assert rows.limited(200, "drop") is rows
    dropped, cut = rows.limited(24, "drop"), rows.limited(24, "truncate")
    assert dropped is not None
    assert cut is not None
    assert dropped.runs == [(24, 1), (16, 1)]
    assert cut.runs == [(24, 2), (16, 1)]
    assert dropped.tokens is not None
    assert dropped.tokens < 130
    assert Rows([(128, 4)]).limited(64, "drop") is None


@given(st.integers(1, 10_000_000))
def test_logits_of_a_chunk_are_bounded_in_bytes(vocabulary: int) -> None:
    positions = chunk_positions(vocabulary)
    assert positions in (64, 128, 256, 512, 1024)
    assert positions == 64 or 8 * positions * vocabulary <= LOGITS_BYTES
    # Twice as many would be too many.
    assert positions == 1024 or 16 * positions * vocabulary > LOGITS_BYTES
