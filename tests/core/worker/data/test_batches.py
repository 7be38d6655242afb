import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.memory.batching import padded_length
from core.worker.data.batches import (
    DataOrder,
    fingerprint,
    largest_micro_batch,
    split_window,
    supervised_count,
)
from core.worker.data.encode import TokenizedRow

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=80)


def make_row(length: int, learned: int) -> TokenizedRow:
    supervised = np.zeros(length, dtype=np.bool_)
    supervised[length - learned :] = True
    return TokenizedRow(np.arange(1, length + 1, dtype=np.int32), supervised)


@given(LENGTHS, st.integers(1, 16), st.integers(0, 2**31 - 1))
def test_an_epoch_has_every_row_once(lengths: list[int], batch_size: int, seed: int) -> None:
    order = DataOrder(lengths, batch_size, seed)
    windows = order.epoch(0)
    assert sorted(row for window in windows for row in window) == list(range(len(lengths)))
    assert len(windows) == order.steps_per_epoch
    assert all(len(window) <= batch_size for window in windows)


@given(LENGTHS, st.integers(1, 8), st.integers(0, 2**31 - 1), st.sets(st.integers(0, 79)))
def test_rows_left_out_are_gaps_and_all_others_keep_their_steps(
    lengths: list[int], batch_size: int, seed: int, excluded: set[int]
) -> None:
    whole, gapped = DataOrder(lengths, batch_size, seed), DataOrder(lengths, batch_size, seed, frozenset(excluded))
    assert gapped.steps_per_epoch == whole.steps_per_epoch
    for step in range(2 * whole.steps_per_epoch):
        assert gapped.window(step) == [row for row in whole.window(step) if row not in excluded]
        assert gapped.whole_window(step) == whole.window(step)


def test_the_order_depends_on_seed_and_step_alone() -> None:
    lengths = [5 + row % 7 for row in range(100)]
    straight = DataOrder(lengths, 8, 42)
    walked = [straight.window(step) for step in range(40)]
    jumped = DataOrder(lengths, 8, 42)
    assert [jumped.window(step) for step in (39, 3, 20)] == [walked[39], walked[3], walked[20]]
    assert DataOrder(lengths, 8, 43).window(0) != walked[0]
    assert straight.epoch(0) != straight.epoch(1)


def test_rows_of_like_length_share_a_step() -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(10, 1000, 512).tolist()
    order = DataOrder(lengths, 8, 0)
    padded = sum(len(window) * max(lengths[row] for row in window) for window in order.epoch(0))
    assert padded < 1.2 * sum(lengths)


@given(LENGTHS, st.integers(1, 2000), st.one_of(st.none(), st.integers(1, 8)))
def test_micro_batches_keep_the_budget_and_lose_no_row(lengths: list[int], budget: int, max_rows: int | None) -> None:
    window = list(range(len(lengths)))
    batches = split_window(window, lengths, budget, max_rows)
    assert sorted(row for batch in batches for row in batch) == window
    for batch in batches:
        width = padded_length(max(lengths[row] for row in batch))
        assert len(batch) == 1 or len(batch) * width <= budget
        assert max_rows is None or len(batch) <= max_rows


@given(LENGTHS, st.integers(1, 16), st.integers(1, 2000), st.integers(0, 5), st.integers(0, 100))
def test_no_step_has_a_larger_micro_batch_than_the_rehearsal(
    lengths: list[int], batch_size: int, budget: int, seed: int, shared: int
) -> None:
    shared = min(shared, *lengths)

    def size(batch: list[int]) -> int:
        return shared + len(batch) * padded_length(padded_length(max(lengths[row] for row in batch)) - shared)

    rehearsed = size(largest_micro_batch(lengths, batch_size, budget, shared=shared))
    for window in DataOrder(lengths, batch_size, seed).epoch(0):
        assert all(size(batch) <= rehearsed for batch in split_window(window, lengths, budget))


def test_a_first_token_is_never_counted() -> None:
    assert supervised_count(make_row(4, 4)) == 3
    assert supervised_count(make_row(4, 2)) == 2


def test_the_fingerprint_sees_tokens_masks_and_order() -> None:
    rows = [make_row(4, 2), make_row(6, 2)]
    assert fingerprint(rows) == fingerprint([make_row(4, 2), make_row(6, 2)])
    assert fingerprint(rows) != fingerprint(rows[::-1])
    assert fingerprint(rows) != fingerprint([make_row(4, 3), make_row(6, 2)])
    assert fingerprint(rows) == fingerprint(rows, frozenset())
    assert len({fingerprint(rows, excluded) for excluded in ((), {0}, {1})}) == 3
