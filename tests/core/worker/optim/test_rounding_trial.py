"""The trial that decides whether the rounding kernels are used; what they compute, tests of the fused kernels tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from core.worker.optim.rounding import choose_kernels, find_fault
from tests.cases import cases
from tests.core.worker.optim.plain_kernels import PlainKernels

CPU = torch.device("cpu")


def test_the_plain_way_passes() -> None:
    assert find_fault(PlainKernels(), CPU) == ""


class Broken(PlainKernels):
    """Kernels that do one thing wrong."""

    def __init__(self, **wrong: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__.update(wrong)


def nearest(weights: torch.Tensor, update: torch.Tensor, *, keep: float, **_: Any) -> None:
    weights.copy_(weights.float() * keep + update.float())


def biased(weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: Any = None) -> None:
    PlainKernels().add_update(weights, update * 1.1, keep=keep, seed=seed, wanted=wanted)


def one_seed(weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: Any = None) -> None:
    PlainKernels().add_update(weights, update, keep=keep, seed=7, wanted=wanted)


def unguarded(weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: Any = None) -> None:
    PlainKernels().add_update(weights, update, keep=keep, seed=seed)


def without_decay(weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: Any = None) -> None:
    PlainKernels().add_update(weights, update, keep=1.0, seed=seed, wanted=wanted)


def carrying(weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: Any = None) -> None:
    kept = weights.clone()
    PlainKernels().add_update(weights, update, keep=keep, seed=seed, wanted=wanted)
    weights[kept.isnan()] = 0.0


@cases(
    ("wrong", "fault"),
    [
        ({"add_update": nearest}, "is off by"),
        ({"add_update": biased}, "is off by"),
        ({"add_update": one_seed}, "two seeds"),
        ({"add_update": unguarded}, "values that bf16 has"),
        ({"add_update": without_decay}, "in fp32"),
        ({"add_update": carrying}, "what is no number"),
        ({"clear_unless": lambda _, values: values.zero_()}, "in fp32"),
        ({"clear_unless": lambda *_: None}, "in fp32"),
    ],
)
def test_what_is_wrong_is_found(wrong: dict[str, Any], fault: str) -> None:
    assert fault in find_fault(Broken(**wrong), CPU)


def test_on_a_cpu_there_are_none() -> None:
    told: list[tuple[str, ...]] = []
    assert choose_kernels(CPU, lambda *notice: told.append(notice)) is None
    assert not told


def test_a_card_that_fails_has_the_plain_way_and_says_so() -> None:
    """Here there is none, so that its first tensor fails."""
    told: list[tuple[str, ...]] = []
    assert choose_kernels(torch.device("cuda"), lambda *notice: told.append(notice)) is None
    ((code, message, hint),) = told
    assert code == "rounding"
    assert "the kernel for it is not used, as it fails with " in message
    assert hint
