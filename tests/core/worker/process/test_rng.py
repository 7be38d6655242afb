"""The state of random generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from core.worker.process.determinism import restore_rng, rng_state
from tests.cases import cases


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
