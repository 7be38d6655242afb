from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from core.analysis.division import held_out_rows, repeats

KEYS = st.lists(st.integers(0, 30).map(lambda number: b"%d" % number), max_size=120)


@given(KEYS, st.floats(0.01, 0.5), st.integers(0, 2**31 - 1))
def test_copies_never_cross(keys: list[bytes], share: float, seed: int) -> None:
    chosen = held_out_rows(keys, share, seed)
    inside = {keys[position] for position in chosen}
    outside = {key for position, key in enumerate(keys) if position not in chosen}
    assert not inside & outside
    assert chosen == held_out_rows(keys, share, seed)
    if len(set(keys)) > 1:
        assert inside
        assert outside
    else:
        assert not chosen


@given(st.integers(2, 400), st.floats(0.01, 0.5), st.integers(0, 1000))
def test_the_share_is_met_where_no_row_is_there_twice(count: int, share: float, seed: int) -> None:
    keys = [b"%d" % number for number in range(count)]
    assert len(held_out_rows(keys, share, seed)) == max(round(share * count), 1)


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    keys = [b"%d" % number for number in range(100)]
    chosen = {keys[position] for position in held_out_rows(keys, 0.2, 1)}
    again = {keys[::-1][position] for position in held_out_rows(keys[::-1], 0.2, 1)}
    assert chosen == again
    assert chosen != {keys[position] for position in held_out_rows(keys, 0.2, 2)}
    assert held_out_rows(keys, 0.0, 1) == set()


@given(KEYS, st.floats(0.001, 20), st.integers(0, 2**31 - 1))
def test_rows_are_repeated_as_often_as_the_weight_says(keys: list[bytes], weight: float, seed: int) -> None:
    counts = repeats(keys, weight, seed)
    assert counts == repeats(keys, weight, seed)
    assert len(counts) == len(keys)
    assert set(counts) <= {int(weight), int(weight) + 1}
    assert abs(sum(counts) - weight * len(keys)) <= 1
    assert not keys or any(counts)


def test_whole_weights_are_exact() -> None:
    keys = [b"%d" % number for number in range(10)]
    assert repeats(keys, 1, 0) == [1] * 10
    assert repeats(keys, 3, 0) == [3] * 10
    assert sorted(repeats(keys, 1.5, 0)) == [1] * 5 + [2] * 5
