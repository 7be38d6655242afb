from __future__ import annotations

from core.config.live import changed_options

BEFORE = {"train": {"learning_rate": 1e-5, "seed": 7}, "data": {"train": "a.jsonl", "eval": "b.jsonl"}, "odd": 1}
NOW = {"train": {"learning_rate": 1e-4, "max_steps": 9}, "data": {"train": "a.jsonl"}, "later": {"option": [1, "a"]}}


def test_each_option_is_told_from_what_to_what() -> None:
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


def test_equal_configurations_have_no_changed_option() -> None:
    assert list(changed_options(BEFORE, BEFORE)) == []


def test_a_long_value_is_cut_and_kept_on_a_line() -> None:
    (option,) = changed_options({}, {"chat": {"system": "Be short.\n" * 400}})
    assert "\n" not in str(option)
    assert len(str(option)) < 400
