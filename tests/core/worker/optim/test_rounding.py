"""Small updates to bf16 weights: kept in expectation, and never more than a neighbor away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.worker.optim.rounding import SLICE, add_update, choose_kernels, find_fault, round_stochastically
from tests.cases import cases
from tests.core.worker.optim.plain_kernels import PlainKernels


def test_an_update_too_small_for_the_dtype_is_kept_in_expectation() -> None:
    torch.manual_seed(0)
    weights = torch.ones(20_000, dtype=torch.bfloat16)
    update = torch.full_like(weights, 2.0**-12)  # a thirty-second of the distance to the next bf16 above 1
    assert torch.equal(weights + update, weights), "rounded to the nearest it would be lost"
    for _ in range(100):
        add_update(weights, update)
    assert float(weights.float().mean()) == pytest.approx(1 + 100 * 2.0**-12, rel=2e-4)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 2**31))
def test_a_value_is_rounded_to_one_of_its_neighbors(value: float, seed: int) -> None:
    torch.manual_seed(seed)
    exact = torch.tensor([value])
    rounded = round_stochastically(exact.clone())
    down = (exact.view(torch.int32) & -(1 << 16)).view(torch.float32)
    up = ((exact.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    assert torch.equal(rounded, down) or torch.equal(rounded, up)
    if torch.equal(exact, down):
        assert torch.equal(rounded, exact), "what bf16 has already stays"


def test_non_finite_values_stay() -> None:
    odd = torch.tensor([float("inf"), float("-inf"), float("nan")])
    rounded = round_stochastically(odd.clone())
    assert torch.equal(rounded[:2], odd[:2])
    assert torch.isnan(rounded[2])


def test_decay_and_slices() -> None:
    weights = torch.full((SLICE + 3,), 2.0)
    add_update(weights, torch.full((SLICE + 3,), 0.5, dtype=torch.bfloat16), keep=0.5)
    assert torch.equal(weights, torch.full((SLICE + 3,), 1.5))


CPU = torch.device("cpu")


def test_the_plain_implementation_passes() -> None:
    assert find_fault(PlainKernels(), CPU) == ""


class Broken(PlainKernels):
    """Kernels that do one thing wrong."""

    def __init__(self, **wrong: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__.update(wrong)


def nearest(weights: torch.Tensor, update: torch.Tensor, *, keep: float, **_: Any) -> None:
    weights.copy_(weights.float() * keep + update.float())


def forced(scale: float = 1.0, **forced: Any) -> Callable[..., None]:
    """An update that ignores what it was given."""
    return lambda weights, update, **given: PlainKernels().add_update(weights, update * scale, **{**given, **forced})


def carrying(weights: torch.Tensor, update: torch.Tensor, **given: Any) -> None:
    odd = weights.isnan()
    PlainKernels().add_update(weights, update, **given)
    weights[odd] = 0.0


@cases(
    ("wrong", "fault"),
    [
        ({"add_update": nearest}, "is off by"),
        ({"add_update": forced(1.1)}, "is off by"),
        ({"add_update": forced(seed=7)}, "two seeds"),
        ({"add_update": forced(wanted=None)}, "values that bf16 has"),
        ({"add_update": forced(keep=1.0)}, "in fp32"),
        ({"add_update": carrying}, "what is not a number"),
        ({"clear_unless": lambda _, values: values.zero_()}, "in fp32"),
        ({"clear_unless": lambda *_: None}, "in fp32"),
    ],
)
def test_wrong_results_are_detected(wrong: dict[str, Any], fault: str) -> None:
    assert fault in find_fault(Broken(**wrong), CPU)


def test_a_cpu_has_no_kernels_and_a_failing_card_falls_back_to_plain_code_and_reports_it() -> None:
    """There is no card here, so that its first tensor fails."""
    told: list[tuple[str, ...]] = []
    assert choose_kernels(CPU, lambda *notice: told.append(notice)) is None
    assert not told
    assert choose_kernels(torch.device("cuda"), lambda *notice: told.append(notice)) is None
    ((code, message, hint),) = told
    assert code == "rounding"
    assert "the kernel for it is not used, as it fails with " in message
    assert hint
