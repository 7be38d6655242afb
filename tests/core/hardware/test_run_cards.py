"""The cards of a run, one for each of its processes."""

from __future__ import annotations

from typing import Any

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.hardware.obstacle import Sight, process_cards
from core.hardware.visible import Identity
from tests.cases import cases

THREE = Sight(cards=(Identity(0, "GPU-a"), Identity(1, "GPU-b"), Identity(2)), capabilities=((8, 9),) * 3)


def cards(sight: Sight = THREE, hardware: dict[str, Any] | None = None, **distributed: Any) -> list[str | None]:
    """The cards that a configuration comes to, all of them visible."""
    values = {"data": {"train": "rows.jsonl"}, "hardware": hardware or {}, "distributed": distributed}
    return process_cards(Config.model_validate(values), sight, {})


@cases(
    ("distributed", "found"),
    [
        ({}, [None]),
        ({"processes": 1}, [None]),
        ({"processes": 2}, ["GPU-a", "GPU-b"]),
        ({"gpus": "all"}, ["GPU-a", "GPU-b", "2"]),
        ({"gpus": "all", "processes": 2}, ["GPU-a", "GPU-b"]),
        ({"gpus": ["2", "GPU-a"]}, ["2", "GPU-a"]),
        ({"gpus": "1"}, ["GPU-b"]),
    ],
)
def test_each_process_has_a_card(distributed: dict[str, Any], found: list[str | None]) -> None:
    assert cards(**distributed) == found


def test_one_process_has_the_card_of_hardware_gpu() -> None:
    assert cards(hardware={"gpu": "1"}) == ["GPU-b"]


@pytest.mark.parametrize("hardware", [{"device": "cpu"}, {"device": "auto"}])
def test_on_a_cpu_no_process_has_one(hardware: dict[str, Any]) -> None:
    assert cards(Sight(), hardware, processes=3) == [None] * 3


@cases(
    ("sight", "distributed", "words"),
    [
        (THREE, {"processes": 4}, "There are 3 cards for 4 processes."),
        (THREE, {"gpus": ["0", "5"]}, "distributed.gpus is 5, and no card is called so"),
        (Sight(), {"gpus": "0"}, "distributed.gpus is 0, and there is no NVIDIA card here."),
    ],
)
def test_too_few_cards_are_a_sentence(sight: Sight, distributed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        cards(sight, **distributed)
    assert words in caught.value.message
