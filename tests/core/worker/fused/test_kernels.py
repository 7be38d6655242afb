from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.worker.fused import kernels
from core.worker.fused.cross_entropy import CrossEntropy, Scaling
from core.worker.fused.experts import Block, GroupedProducts, Offsets
from core.worker.fused.gated import ACTIVATIONS, Gating
from core.worker.fused.kernels import (
    can_use,
    cross_entropy_of,
    gating_of,
    grouped_products,
    kernel_trials,
    norm_function,
    rotation_of,
)
from core.worker.fused.rms_norm import RmsNormFunction
from core.worker.fused.rotary import rotate
from core.worker.selftest.fast_paths import trials
from tests.cases import cases

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[4]


@cases(
    ("capability", "dtype", "used"),
    [
        ((8, 0), torch.bfloat16, True),
        ((12, 0), torch.float32, True),
        ((7, 5), torch.float16, True),
        ((7, 5), torch.bfloat16, False),
        ((7, 0), torch.float16, False),
        ((8, 6), torch.float64, False),
        (None, torch.float32, False),
    ],
)
def test_kernels_are_tried_where_they_can_be_compiled(
    capability: tuple[int, int] | None, dtype: torch.dtype, used: bool
) -> None:
    assert can_use(capability, dtype) is used


def test_a_cpu_has_none() -> None:
    assert norm_function(CPU, torch.float32, 64) is RmsNormFunction
    assert rotation_of(CPU, torch.float32) is rotate
    assert type(gating_of(ACTIVATIONS[0], CPU, torch.float32)) is Gating
    assert type(grouped_products(CPU, torch.bfloat16)) is GroupedProducts
    assert type(cross_entropy_of(CPU, torch.float32)) is CrossEntropy
    assert list(kernel_trials(CPU, torch.float32)) == []


Right = type("Right", (RmsNormFunction,), {})
RightGating = type("RightGating", (Gating,), {})
RightCrossEntropy = type("RightCrossEntropy", (CrossEntropy,), {})


class Wrong(RmsNormFunction):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return RmsNormFunction.forward(ctx, x, weight + 1, epsilon)


class WrongGating(Gating):
    def product(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return gate * up


RightProducts = type("RightProducts", (GroupedProducts,), {})


class WrongProducts(GroupedProducts):
    """The second block of experts has the rows of the first."""

    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, offsets: Offsets, block: Block | None, into: torch.Tensor
    ) -> None:
        super().multiply(rows, matrices, offsets, block, into)
        if block is not None and block.first:
            into[block.rows] = into[0]


class WrongCrossEntropy(CrossEntropy):
    def differentiate(
        self, logits: torch.Tensor, targets: torch.Tensor, scaling: Scaling, factors: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().differentiate(logits, targets, scaling)


def unrotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    return x.clone()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    return rotate(x, cos, sin, sign)


class Unlearned(RmsNormFunction):
    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        to_x, to_weight, _ = RmsNormFunction.backward(ctx, *outputs)
        return to_x, to_weight if to_weight is None else to_weight * 1.1, None


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As if the CPU were a device that Triton compiles for."""
    cached: tuple[Callable[..., Any], ...] = (
        kernels._norm_trial,
        kernels._gated_trial,
        kernels._rotary_trials,
        kernels._experts_trial,
        kernels._cross_entropy_trial,
    )
    for function in cached:
        function.cache_clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(kernels, "_usable", lambda *_: True)
    yield monkeypatch
    for function in cached:
        function.cache_clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("right", [True, False])
def test_a_kernel_is_used_if_it_passes_its_trial(usable: pytest.MonkeyPatch, right: bool) -> None:
    usable.setattr(kernels, "_norm_kernel", lambda: Right if right else Wrong)
    usable.setattr(kernels, "_gated_kernel", RightGating if right else WrongGating)
    usable.setattr(kernels, "_rotary_kernel", lambda: rotated if right else unrotated)
    usable.setattr(kernels, "_experts_kernel", RightProducts if right else WrongProducts)
    usable.setattr(kernels, "_cross_entropy_kernel", RightCrossEntropy if right else WrongCrossEntropy)
    for learned in (False, True):
        assert norm_function(CPU, torch.float32, 48, learned=learned) is (Right if right else RmsNormFunction)
    assert type(gating_of(ACTIVATIONS[0], CPU, torch.float32)) is (RightGating if right else Gating)
    assert rotation_of(CPU, torch.float32) is (rotated if right else rotate)
    assert type(grouped_products(CPU, torch.bfloat16)) is (RightProducts if right else GroupedProducts)
    assert type(grouped_products(CPU, torch.float32)) is GroupedProducts
    assert type(cross_entropy_of(CPU, torch.float32)) is (RightCrossEntropy if right else CrossEntropy)
    made = list(kernel_trials(CPU, torch.bfloat16))
    assert len({trial.name for trial in made}) == len(made) == 9
    assert {trial.passed for trial in made} == {right}


def test_a_wrong_gradient_of_the_weight_matters_where_the_weight_is_trained(usable: pytest.MonkeyPatch) -> None:
    usable.setattr(kernels, "_norm_kernel", lambda: Unlearned)
    assert norm_function(CPU, torch.float32, 48) is Unlearned
    assert norm_function(CPU, torch.float32, 48, learned=True) is RmsNormFunction


def test_a_damaged_triton_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not kernels._is_installed()


def test_without_triton_all_trials_pass_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("cross_entropy", "experts", "gated", "rms_norm", "rotary"):
        # So that an import of it would fail.
        monkeypatch.delitem(sys.modules, f"core.worker.fused.triton.{name}", raising=False)
    made = list(trials(CPU, torch.float32))
    assert made
    assert all(trial.passed for trial in made)
