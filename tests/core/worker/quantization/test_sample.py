from __future__ import annotations

import pytest

from core.errors import UserError
from core.worker.quantization.sample import choose_sample
from tests.core.worker.quantization.hurt import write_rows


def test_rows_are_spread_and_within_the_budget() -> None:
    rows = write_rows(*range(20, 120))
    sample = choose_sample(rows, 10, 10_000, "eval")
    assert [len(row) for row in sample.rows] == [20, 30, 40, 50, 60, 70, 80, 90, 100, 110]
    assert sample.data == "eval"
    fewer = choose_sample(rows, 10, 200, "eval")
    assert [len(row) for row in fewer.rows] == [20, 30, 40], "four of 56 tokens with padding are too many"
    assert [len(row) for row in choose_sample(rows[:3], 10, 10_000, "eval").rows] == [20, 21, 22]


def test_a_row_that_is_longer_than_the_budget_is_cut() -> None:
    assert [len(row) for row in choose_sample(write_rows(300), 4, 200, "training").rows] == [200]


def test_rows_of_which_nothing_would_be_measured_are_refused() -> None:
    with pytest.raises(UserError, match="Nothing is learned in the first 100 tokens"):
        choose_sample(write_rows(300), 4, 100, "training")
