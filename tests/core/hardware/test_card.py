from __future__ import annotations

from typing import Any

import pytest

from core.hardware.card import Card, find_card
from tests.cases import cases

from .conftest import Ask

PROGRAM = (
    "import json, dataclasses\nfrom core.hardware.card import find_card\n"
    "card = find_card({timeout}, {environment})\n"
    "print(json.dumps(card and [card.name, card.memory_total, card.capability, card.has_bf16]))\n"
)
ADA = ["NVIDIA GeForce RTX 4090", 24_000_000_000, [8, 9], True]


@cases(
    ("environment", "expected"),
    [
        ({}, ADA),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, ADA),
        ({"CUDA_VISIBLE_DEVICES": "GPU-00000010"}, ADA),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1234"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "7"}, None),
    ],
)
def test_the_first_visible_card_is_found(ask_driver: Ask, environment: dict[str, str], expected: Any) -> None:
    assert ask_driver(PROGRAM.format(timeout=60, environment=environment)) == expected


def test_an_older_card_has_no_bf16(ask_driver: Ask) -> None:
    found = ask_driver(PROGRAM.format(timeout=60, environment={"CUDA_VISIBLE_DEVICES": "1"}))
    assert found[2:] == [[7, 0], False]


@cases(("mode", "timeout"), [("none", 20), ("mismatch", 20), ("hang", 0.3)])
def test_a_broken_driver_is_no_card(ask_driver: Ask, mode: str, timeout: float) -> None:
    assert ask_driver(PROGRAM.format(timeout=timeout, environment={}), mode) is None


def test_what_is_not_known_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Card("card", None, None).has_bf16 is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_card() is None
