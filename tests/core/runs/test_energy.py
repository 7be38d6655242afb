from __future__ import annotations

import math

from core.runs.outlook.energy import Tariff, energy_words
from tests.cases import cases


@cases(
    ("price", "energy", "words"),
    [
        (0.32, 4_100.0, ["4100.0 Wh", "1.31 EUR"]),
        (0.32, 1.9, ["1.9 Wh", "< 0.01 EUR"]),
        (0.0, 1.9, ["1.9 Wh", "0.00 EUR"]),
        (0.32, 0.0, ["0.0 Wh", "0.00 EUR"]),
        (None, 1.9, ["1.9 Wh"]),
        (0.32, None, []),
    ],
)
def test_energy_and_its_cost(price: float | None, energy: float | None, words: list[str]) -> None:
    assert energy_words(energy, Tariff(price, "EUR")) == words


def test_a_cost_without_a_currency_is_a_number() -> None:
    assert Tariff(2).words(1500.0) == "3.00"
    assert Tariff(2, "\x1b[31mkronor and more").words(1500.0) == "3.00 \ufffd[31mkr…"


@cases("price", [None, "0.3", True, -1, math.inf, math.nan, [1]])
def test_no_price_is_no_cost(price: object) -> None:
    assert Tariff.of({"hardware.tariff": price}).words(5.0) == ""


def test_the_price_is_that_of_the_configuration() -> None:
    assert Tariff.of({"hardware.tariff": 1, "hardware.currency": "kr"}) == Tariff(1.0, "kr")
    assert Tariff.of({"hardware.tariff": 0.3, "hardware.currency": 5}) == Tariff(0.3, "")
    assert Tariff.of({}) == Tariff()
