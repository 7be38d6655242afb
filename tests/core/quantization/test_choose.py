from __future__ import annotations

from collections.abc import Callable

import pytest

from core.quantization.result import FINE, LayerCost, choose_layers, layer_pattern, most_costly


def layers(*costs: float, size: int = 100) -> list[LayerCost]:
    return [LayerCost(f"model.layers.{place}", cost, size) for place, cost in enumerate(costs)]


def test_those_that_cost_most_are_taken_until_the_share_is_reached() -> None:
    costs = layers(0.1, 0.5, 0.0, 0.3, 0.1)
    assert most_costly(costs, 0.5, None) == (1,)
    assert most_costly(costs, 0.7, None) == (1, 3)
    assert most_costly(costs, 1.0, None) == (0, 1, 3, 4), "a layer that costs nothing gains nothing"
    assert most_costly(costs, 1.0, 250) == (1, 3)
    assert most_costly(costs, 1.0, 99) == ()


def test_a_smaller_layer_is_taken_first_where_it_costs_as_much() -> None:
    costs = [LayerCost("a", 0.2, 400), LayerCost("b", 0.2, 100), LayerCost("c", 0.01, 1)]
    assert most_costly(costs, 0.4, None) == (1, 2)


@pytest.mark.parametrize("whole", [0.0, FINE])
def test_where_4_bits_are_fine_nothing_is_kept_and_nothing_measured(whole: float) -> None:
    assert choose_layers(layers(0.1, 0.1), whole, None, lambda _: pytest.fail("measured")) == ()


class Measured:
    """Measures choices by a rule, and remembers them.

    Args:
        left: Number of kept layers to the divergence that is left.
    """

    def __init__(self, left: Callable[[int], float]) -> None:
        self._left = left
        self.tried: list[tuple[int, ...]] = []

    def __call__(self, kept: tuple[int, ...]) -> float:
        self.tried.append(kept)
        return self._left(len(kept))


def test_half_is_enough_where_that_is_what_was_measured() -> None:
    measured = Measured(lambda kept: 0.4 - 0.05 * kept)
    assert choose_layers(layers(*[0.125] * 8), 0.4, None, measured) == (0, 1, 2, 3)
    assert len(measured.tried) == 1


def test_more_are_taken_where_what_was_measured_is_not_enough_and_fewer_where_it_is_too_much() -> None:
    # The last ones bring more than the first.
    measured = Measured(lambda kept: 0.4 * (1 - (kept / 16) ** 2))
    chosen = choose_layers(layers(*[0.125] * 16), 0.4, None, measured)
    assert [len(kept) for kept in measured.tried] == [8, 16, 11]
    assert chosen == tuple(range(11)), "the smallest that is enough"
    # The first ones bring more than the last.
    measured = Measured(lambda kept: 0.4 * (1 - (kept / 16) ** 0.5))
    chosen = choose_layers(layers(*[0.125] * 16), 0.4, None, measured)
    assert len(chosen) < 8
    assert measured(chosen) <= 0.22


def test_no_more_is_measured_than_fits() -> None:
    measured = Measured(lambda _: 0.39)
    assert choose_layers(layers(*[0.125] * 8), 0.4, 200, measured) == (0, 1)
    assert measured.tried == [(0, 1)]
    assert choose_layers(layers(*[0.125] * 8), 0.4, 0, measured) == ()
    assert measured.tried == [(0, 1)]


def test_a_pattern_has_one_layer() -> None:
    from core.config.targets import is_target

    pattern = layer_pattern("model.layers.1")
    assert is_target("model.layers.1.mlp.up_proj", pattern)
    assert not is_target("model.layers.11.mlp.up_proj", pattern)
    assert not is_target("model.vision_tower.layers.1.mlp.up_proj", pattern)
