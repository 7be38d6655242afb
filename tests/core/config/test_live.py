"""Changes of options: in a live run, and between two recorded configurations."""

from __future__ import annotations

from typing import Any

import pytest

from core.config.live import changed_options, read_changes
from core.config.schema import Config, DataSection
from core.errors import UserError
from tests.cases import cases, tables

TABLES = tables(__file__)

CONFIG = Config(data=DataSection(train="rows.jsonl"))


def test_changes_are_read_as_typed_or_as_they_are() -> None:
    asked = {"train.learning_rate": " 5e-5 ", "eval.every_steps": "", "checkpoint.every_steps": 20}
    assert read_changes(CONFIG, asked) == {
        "train.learning_rate": 5e-5,
        "eval.every_steps": None,
        "checkpoint.every_steps": 20,
    }
    assert CONFIG.checkpoint.every_steps is None


@cases(("asked", "sentence"), TABLES["what_cannot_be_changed_or_meant_is_reported"])
def test_what_cannot_be_changed_or_meant_is_reported(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read_changes(CONFIG, asked)
    assert error.value.message.startswith(sentence)


BEFORE = {"train": {"learning_rate": 1e-5, "seed": 7}, "data": {"train": "a.jsonl", "eval": "b.jsonl"}, "odd": 1}
NOW = {"train": {"learning_rate": 1e-4, "max_steps": 9}, "data": {"train": "a.jsonl"}, "later": {"option": [1, "a"]}}


def test_each_option_is_reported_with_old_and_new_value() -> None:
    found = list(changed_options(BEFORE, NOW))
    assert [str(option) for option in found] == [
        'data.eval was "b.jsonl" and is no longer set',
        'later.option was not set and is now [1, "a"]',
        "train.learning_rate changed from 1e-5 to 1e-4",
        "train.max_steps was not set and is now 9",
        "train.seed changed from 7 to 42 (the default)",
    ]
    assert [(option.before_in_words, option.now_in_words) for option in found[:2]] == [
        ('"b.jsonl"', "not set"),
        ("not set", '[1, "a"]'),
    ]


def test_a_long_value_is_cut_and_kept_on_a_line() -> None:
    (option,) = changed_options({}, {"chat": {"system": "Be short.\n" * 400}})
    assert "\n" not in str(option)
    assert len(str(option)) < 400
