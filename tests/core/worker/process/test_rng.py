"""The state of random generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from core.worker.process.determinism import restore_rng, rng_state


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

    def __init__(self, patch: pytest.MonkeyPatch, states: list[int], *, used: bool = True) -> None:
        self.states = [torch.tensor([state], dtype=torch.uint8) for state in states]
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_initialized", lambda: used)
        patch.setattr(torch.cuda, "get_rng_state", lambda: self.states[0].clone())
        patch.setattr(torch.cuda, "set_rng_state", self._set)

    def _set(self, state: torch.Tensor) -> None:
        self.states[0] = state.clone()

    @property
    def values(self) -> list[int]:
        return [int(state) for state in self.states]


def test_the_generator_of_the_card_that_is_trained_on_is_kept_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards(monkeypatch, [1, 2])
    before = rng_state()
    assert len(before["cuda"]) == 1
    cards.states = [torch.tensor([9], dtype=torch.uint8)] * 2
    restore_rng(before)
    assert cards.values == [1, 9]


def test_a_state_of_more_cards_than_are_left_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rng_state() | {"cuda": [torch.tensor([state], dtype=torch.uint8) for state in (1, 2, 3)]}
    cards = Cards(monkeypatch, [7])
    restore_rng(before)
    assert cards.values == [1]


def test_a_state_without_a_card_leaves_the_card_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rng_state()
    cards = Cards(monkeypatch, [7])
    restore_rng(before)
    assert cards.values == [7]


def test_a_run_on_the_cpu_does_not_touch_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    Cards(monkeypatch, [7], used=False)
    assert "cuda" not in rng_state()
