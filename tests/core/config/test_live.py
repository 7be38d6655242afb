from __future__ import annotations

from typing import Any

import pytest

from core.config.live import read_changes
from core.config.schema import Config, DataSection
from core.errors import UserError
from tests.cases import cases

CONFIG = Config(data=DataSection(train="rows.jsonl"))


def test_changes_are_read_as_typed_or_as_they_are() -> None:
    asked = {"train.learning_rate": " 5e-5 ", "eval.every_steps": "", "checkpoint.every_steps": 20}
    assert read_changes(CONFIG, asked) == {
        "train.learning_rate": 5e-5,
        "eval.every_steps": None,
        "checkpoint.every_steps": 20,
    }
    assert CONFIG.checkpoint.every_steps is None


@cases(
    ("asked", "sentence"),
    [
        ({}, "Nothing was named to set."),
        ({"train.batch_size": 8}, "train.batch_size cannot be changed while a run is on."),
        ({"no.such": 8}, "no.such cannot be changed while a run is on."),
        ({"train.learning_rate": "nan"}, "train.learning_rate must be a number above 0, at most 1, not nan."),
        ({"train.learning_rate": ""}, "train.learning_rate must be a number, not ''."),
        ({"train.learning_rate": 1e-4, "eval.every_steps": 0}, "eval.every_steps must be a whole number from 1 to "),
    ],
)
def test_what_cannot_be_changed_or_meant_is_said(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read_changes(CONFIG, asked)
    assert error.value.message.startswith(sentence)
