"""Buckets of gradients: each is sent at once, and none is larger than planned."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.worker.distributed import strategy
from core.worker.distributed.strategy import split_rows


def test_a_tensor_larger_than_a_bucket_is_sent_in_pieces_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy, "BUCKET", 10)
    tensors = [torch.zeros(3), torch.zeros(5, 5), torch.zeros(2, dtype=torch.bfloat16)]
    buckets = list(strategy._buckets(tensors))
    assert [sum(piece.numel() for piece in bucket) for bucket in buckets] == [3, 10, 10, 7]
    for number, bucket in enumerate(buckets):
        flat = strategy._flat(bucket)
        assert flat.dtype == torch.float32
        strategy._put_back(flat + number + 1, bucket)
    assert tensors[0].tolist() == [1.0] * 3
    assert tensors[1].view(-1).tolist() == [2.0] * 10 + [3.0] * 10 + [4.0] * 5
    assert tensors[2].tolist() == [4.0, 4.0]
    assert list(strategy._buckets([])) == [[]]


_WINDOWS = st.lists(st.integers(1, 4096), min_size=1, max_size=64).flatmap(
    lambda costs: st.tuples(st.just(costs), st.permutations(range(len(costs))))
)


@given(_WINDOWS, st.integers(1, 9))
def test_every_row_is_worked_on_once_and_no_process_waits_longer_than_a_row(
    window: tuple[list[int], list[int]], count: int
) -> None:
    costs, rows = window
    shares = split_rows(rows, costs, count)
    assert len(shares) == count
    assert Counter(row for share in shares for row in share) == Counter(rows)
    for share in shares:
        assert share == [row for row in rows if row in set(share)], "a share keeps the order of the window"
    loads = [sum(costs[row] for row in share) for share in shares]
    # Whoever has most got its last row when it had least.
    assert max(loads) <= sum(costs) / count + max(costs) * (1 - 1 / count) + 1e-9


def test_long_rows_are_spread_and_the_short_ones_fill_up() -> None:
    costs = [100, 10, 90, 20, 10, 10]
    assert split_rows(range(6), costs, 2) == [[0, 1, 4], [2, 3, 5]]
