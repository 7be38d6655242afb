"""Small updates to bf16 weights: kept in expectation, and never more than a neighbor away."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.worker.optim.rounding import SLICE, add_update, round_stochastically


def test_an_update_too_small_for_the_dtype_is_kept_in_expectation() -> None:
    torch.manual_seed(0)
    weights = torch.ones(20_000, dtype=torch.bfloat16)
    update = torch.full_like(weights, 2.0**-12)  # a thirty-second of the distance to the next bf16 above 1
    assert torch.equal(weights + update, weights), "rounded to the nearest it would be lost"
    for _ in range(100):
        add_update(weights, update)
    assert float(weights.float().mean()) == pytest.approx(1 + 100 * 2.0**-12, rel=2e-4)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 2**31))
def test_a_value_becomes_one_of_its_two_neighbors(value: float, seed: int) -> None:
    torch.manual_seed(seed)
    exact = torch.tensor([value])
    rounded = round_stochastically(exact.clone())
    down = (exact.view(torch.int32) & -(1 << 16)).view(torch.float32)
    up = ((exact.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    assert torch.equal(rounded, down) or torch.equal(rounded, up)
    if torch.equal(exact, down):
        assert torch.equal(rounded, exact), "what bf16 has already stays"


def test_what_is_not_finite_stays() -> None:
    odd = torch.tensor([float("inf"), float("-inf"), float("nan")])
    rounded = round_stochastically(odd.clone())
    assert torch.equal(rounded[:2], odd[:2])
    assert torch.isnan(rounded[2])


def test_decay_and_slices() -> None:
    weights = torch.full((SLICE + 3,), 2.0)
    add_update(weights, torch.full((SLICE + 3,), 0.5, dtype=torch.bfloat16), keep=0.5)
    assert torch.equal(weights, torch.full((SLICE + 3,), 1.5))


def test_the_same_seed_rounds_the_same() -> None:
    update = torch.full((1000,), 1e-3)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        weights = torch.ones(1000, dtype=torch.bfloat16)
        add_update(weights, update)
        results.append(weights)
    assert torch.equal(*results)
