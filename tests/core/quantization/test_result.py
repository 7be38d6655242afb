from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import pytest

from core.quantization.result import (
    FINE,
    Figures,
    Kept,
    LayerCost,
    QuantizationCost,
    advice,
    choose_layers,
    facts,
    kept_sentence,
    layer_lines,
    most_costly,
    name_layers,
    sentence,
)
from tests.cases import cases

COST = QuantizationCost(
    rows=12,
    tokens=840,
    data="held_out",
    device="cuda",
    precision="bf16",
    loss_16bit=1.5,
    whole=Figures(1.7, 0.21, 0.8),
    layers=tuple(LayerCost(f"model.layers.{place}", cost, 200_000_000) for place, cost in enumerate((0.1, 0.02, 0.05))),
    kept=Kept((0, 2), ("model.layers.0.*", "model.layers.2.*"), 400_000_000, Figures(1.6, 0.1, 0.9)),
    free_bytes=None,
    seconds=12.0,
    peak_bytes=3_000_000_000,
)


def test_the_sentence_says_what_was_measured() -> None:
    assert sentence(COST) == (
        "4 bits cost 0.21 nats on your rows; keep layers 0 and 2 in 16 bit: 400 MB more halves it (0.10)."
    )
    assert COST.kept is not None
    less = replace(COST, kept=replace(COST.kept, figures=Figures(1.6, 0.15, 0.9)))
    assert sentence(less).endswith("400 MB more makes it 0.15.")
    fine = replace(COST, whole=Figures(1.5, 0.02, 0.99), kept=None)
    assert sentence(fine) == "4 bits cost 0.02 nats on your rows: fine."
    assert sentence(replace(fine, data="training")) == (
        "4 bits cost 0.02 nats on your training rows, as none are held out: fine."
    )
    none = replace(COST, kept=None, free_bytes=0)
    assert sentence(none).endswith("nats on your rows, and there is no memory free to keep layers in 16 bit.")
    assert sentence(replace(fine, whole=Figures(1.5, 0.0031, 1.0))) == "4 bits cost 0.003 nats on your rows: fine."
    least = replace(fine, whole=Figures(1.5, 0.00006, 1.0))
    assert sentence(least) == "4 bits cost less than 0.001 nats on your rows: fine."
    many = replace(COST, kept=replace(COST.kept, layers=tuple(range(0, 40, 2))))
    assert "; keep 20 of 3 layers in 16 bit: " in sentence(many)
    assert kept_sentence(COST) == "4 bits cost 0.10 nats on your rows with 2 of 3 layers in 16 bit; without them 0.21."


@cases(
    ("layers", "words"),
    [
        ((3,), "layer 3"),
        ((0, 1), "layers 0 and 1"),
        ((0, 1, 31), "layers 0, 1 and 31"),
        ((0, 1, 2, 3, 30), "layers 0 to 3 and 30"),
    ],
)
def test_layers_are_named(layers: tuple[int, ...], words: str) -> None:
    assert name_layers(layers) == words


def test_the_table_is_in_order_of_cost_and_marks_what_is_kept() -> None:
    lines = layer_lines(COST)
    assert [line.text.split()[0] for line in lines] == ["0", "2", "1"]
    assert [line.is_kept for line in lines] == [True, True, False]
    assert [line.share for line in lines] == pytest.approx([1.0, 0.5, 0.2])
    assert len({len(line.text) for line in lines}) == 1
    assert "12 held-out rows, 840 supervised tokens" in facts(COST)[0]
    assert advice(COST) == 'Set model.keep_16bit = "auto", or ["model.layers.0.*", "model.layers.2.*"].'
    assert advice(replace(COST, kept=None)) == ""


@cases(
    ("costs", "shares"),
    [
        # Nothing is lost: no bars.
        ((0.0, 0.0, 0.0), [0, 0, 0]),
        ((0.00004, -0.00003, 0.00001), [0, 0, 0]),
        # Three layers that cost a third of the negligible divergence each would be full.
        ((0.005, 0.001, 0.0), [0.3, 0.06, 0]),
        # More than that: against the costliest.
        ((0.2, 0.1, 0.001), [1, 0.5, 0.005]),
    ],
)
def test_bars_are_as_long_as_what_is_lost(costs: tuple[float, ...], shares: list[float]) -> None:
    cost = replace(COST, layers=tuple(LayerCost(f"model.layers.{place}", each, 1) for place, each in enumerate(costs)))
    lines = layer_lines(cost)
    assert [line.share for line in lines] == pytest.approx(shares)
    assert [("0.0000" in line.text) for line in lines] == [share == 0 for share in shares]
    assert all("-" not in line.text for line in lines)
    assert layer_lines(replace(COST, layers=())) == []


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


def measuring(left: Callable[[int], float]) -> Mock:
    """A measurement of choices by the divergence that is left with a number of kept layers."""
    return Mock(side_effect=lambda kept: left(len(kept)))


def test_half_is_enough_where_that_is_what_was_measured() -> None:
    for fine in (0.0, FINE):
        assert choose_layers(layers(0.1, 0.1), fine, None, lambda _: pytest.fail("measured")) == ()
    measured = measuring(lambda kept: 0.4 - 0.05 * kept)
    assert choose_layers(layers(*[0.125] * 8), 0.4, None, measured) == (0, 1, 2, 3)
    measured.assert_called_once()


def test_more_are_taken_where_what_was_measured_is_not_enough_and_fewer_where_it_is_too_much() -> None:
    # The last ones bring more than the first.
    measured = measuring(lambda kept: 0.4 * (1 - (kept / 16) ** 2))
    chosen = choose_layers(layers(*[0.125] * 16), 0.4, None, measured)
    assert [len(tried.args[0]) for tried in measured.mock_calls] == [8, 16, 11]
    assert chosen == tuple(range(11)), "the smallest that is enough"
    # The first ones bring more than the last.
    measured = measuring(lambda kept: 0.4 * (1 - (kept / 16) ** 0.5))
    chosen = choose_layers(layers(*[0.125] * 16), 0.4, None, measured)
    assert len(chosen) < 8
    assert measured(chosen) <= 0.22


def test_no_more_is_measured_than_fits() -> None:
    measured = measuring(lambda _: 0.39)
    assert choose_layers(layers(*[0.125] * 8), 0.4, 200, measured) == (0, 1)
    assert choose_layers(layers(*[0.125] * 8), 0.4, 0, measured) == ()
    measured.assert_called_once_with((0, 1))
