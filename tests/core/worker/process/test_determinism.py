"""Determinism of the steps after a checkpoint, and the state of random generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.worker.process.determinism import choose_determinism, nondeterminism_explained, restore_rng, rng_state
from tests.cases import cases
from tests.core.worker.process.after_torch import told_after_torch

_CODE = """
import json, os
import torch
from core.worker.process import environment
from core.worker.process.determinism import apply_determinism, fix_workspace
environment.prepare()
fix_workspace(kind)
apply_determinism(kind, device)
print(json.dumps({
    "strict": torch.are_deterministic_algorithms_enabled(),
    "fills": torch.utils.deterministic.fill_uninitialized_memory,
    "cudnn": torch.backends.cudnn.deterministic,
    "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
}))
"""
#: Workspace setting of the user, and the resulting one of a strict run.
WORKSPACES = ((None, ":4096:8"), (":16:8", ":16:8"), (":0:0", ":4096:8"), (":4096:2", ":4096:8"))


@cases(
    ("wanted", "device", "expected"),
    [
        ("auto", "cpu", "strict"),
        ("strict", "cpu", "strict"),
        ("fast", "cpu", "strict"),
        ("auto", "cuda", "fast"),
        ("strict", "cuda", "strict"),
        ("fast", "cuda", "fast"),
    ],
)
def test_a_cpu_is_always_strict_and_a_gpu_if_configured(wanted: str, device: str, expected: str) -> None:
    assert choose_determinism(wanted, device) == expected


@pytest.mark.long
def test_a_strict_run_on_a_gpu_takes_ordered_kernels_and_other_runs_leave_torch_alone() -> None:
    asked = [*(("strict", "cuda", given) for given, _ in WORKSPACES), ("fast", "cuda", None), ("strict", "cpu", None)]
    *strict, fast, cpu = told_after_torch(
        _CODE,
        [
            (
                {"PATH": "/usr/bin:/bin"} | ({} if given is None else {"CUBLAS_WORKSPACE_CONFIG": given}),
                {"kind": kind, "device": device},
            )
            for kind, device, given in asked
        ],
    )
    assert strict == [
        {"strict": True, "fills": False, "cudnn": True, "workspace": expected} for _, expected in WORKSPACES
    ]
    assert not fast["strict"]
    assert fast["workspace"] is None
    assert not cpu["strict"]


def test_an_operation_without_a_deterministic_form_is_a_user_error() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(UserError) as caught, nondeterminism_explained():
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert caught.value.message == ("train.deterministic is strict, and put_ has no deterministic form on this device.")
    assert "train.deterministic = fast" in caught.value.hint


def test_other_errors_are_passed_on() -> None:
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
    before = rng_state()
    if saved:
        Cards(monkeypatch, *saved)
        before = rng_state()
        assert len(before["cuda"]) == 1
    cards = Cards(monkeypatch, *now)
    restore_rng(before)
    assert cards.states == restored


def test_the_states_of_several_cards_that_earlier_versions_saved_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rng_state() | {"cuda": [torch.tensor([state], dtype=torch.uint8) for state in (1, 2, 3)]}
    cards = Cards(monkeypatch, 7)
    restore_rng(before)
    assert cards.states == [1]


def test_a_run_on_the_cpu_does_not_touch_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    Cards(monkeypatch, 7, used=False)
    assert "cuda" not in rng_state()
