"""Determinism of the steps after a checkpoint, and the state of random generators."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.worker.process.determinism import (
    Determinism,
    apply_determinism,
    choose_determinism,
    fix_workspace,
    nondeterminism_explained,
    restore_rng,
    rng_state,
)
from tests.cases import cases


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


@cases(
    ("wanted", "device", "expected", "ordered"),
    [
        ("auto", "cpu", "strict", False),
        ("strict", "cpu", "strict", False),
        ("fast", "cpu", "strict", False),
        ("auto", "cuda", "fast", False),
        ("fast", "cuda", "fast", False),
        ("strict", "cuda", "strict", True),
    ],
)
@pytest.mark.usefixtures("torch_as_it_was")
def test_a_cpu_is_always_strict_and_a_gpu_takes_ordered_kernels_if_configured(
    wanted: str, device: str, expected: Determinism, ordered: bool
) -> None:
    assert choose_determinism(wanted, device) == expected
    apply_determinism(expected, device)
    assert torch.are_deterministic_algorithms_enabled() is torch.backends.cudnn.deterministic is ordered
    assert torch.utils.deterministic.fill_uninitialized_memory is not ordered  # type: ignore[attr-defined]


@cases(
    ("kind", "given", "expected"),
    [
        ("strict", None, ":4096:8"),
        ("strict", ":16:8", ":16:8"),
        ("strict", ":0:0", ":4096:8"),
        ("strict", ":4096:2", ":4096:8"),
        ("fast", None, None),
    ],
)
def test_a_strict_run_has_a_workspace_of_fixed_size(
    kind: str, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    fix_workspace(kind)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == expected
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back


@pytest.mark.usefixtures("torch_as_it_was")
def test_an_operation_without_a_deterministic_form_is_a_user_error() -> None:
    torch.use_deterministic_algorithms(True)
    with pytest.raises(UserError) as caught, nondeterminism_explained():
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    assert caught.value.message == "train.deterministic is strict, and put_ has no deterministic form on this device."
    assert "train.deterministic = fast" in caught.value.hint
    with pytest.raises(RuntimeError, match="shape mismatch"), nondeterminism_explained():
        raise RuntimeError("shape mismatch")


def test_the_random_state_of_all_generators_is_put_back() -> None:
    def draw() -> tuple[Any, ...]:
        return torch.rand(2).tolist(), np.random.standard_normal(), random.gauss(0, 1)

    draw()
    before = rng_state()
    first = draw()
    draw()
    restore_rng(before)
    assert draw() == first


class Cards:
    """Generators of visible cards, in place of torch's."""

    def __init__(self, patch: pytest.MonkeyPatch, *states: int, used: bool = True) -> None:
        self.states = list(states)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_initialized", lambda: used)
        patch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([self.states[0]], dtype=torch.uint8))
        patch.setattr(torch.cuda, "set_rng_state", self._set)

    def _set(self, state: torch.Tensor) -> None:
        self.states[0] = int(state)


@cases(
    ("saved", "now", "restored"),
    [([1, 2], [9, 9], [1, 9]), ([1], [7], [1]), ([], [7], [7])],
    ids=["several cards", "fewer cards", "saved without a card"],
)
def test_only_the_generator_of_the_card_in_use_is_saved_and_restored(
    saved: list[int], now: list[int], restored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Cards(monkeypatch, 7, used=False)
    before = rng_state()
    assert "cuda" not in before, "a run on the CPU does not touch the cards"
    if saved:
        Cards(monkeypatch, *saved)
        before = rng_state()
        assert len(before["cuda"]) == 1
    cards = Cards(monkeypatch, *now)
    restore_rng(before)
    assert cards.states == restored
    # Earlier versions saved the states of all cards.
    restore_rng(before | {"cuda": [torch.tensor([state], dtype=torch.uint8) for state in (4, 5, 6)]})
    assert cards.states == [4, *restored[1:]]
