"""Answers compared with the expected ones."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.evaluation.score import Expected, answers_match, parse_json
from tests.cases import cases

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
def test_json_matches_itself_however_it_is_written(value: Any) -> None:
    assert answers_match(json.dumps(value), json.dumps(value, indent=2))
    if value is not None:
        assert not answers_match(json.dumps(value), json.dumps([value]))


@cases(
    ("expected", "answer", "match"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ('{"a": 1}', '{"a": 1.0}', True),
        ('{"a": 1}', '{"a": true}', False),
        ("true", "1", False),
        ("[0]", "[false]", False),
        ('{"a": "x"}', '{"a": "X"}', False),
        ('{"a": 1}', 'The answer is {"a": 1}', False),
        ('{"a": 1}', "", False),
        ("yes", " yes\n", True),
        ("yes", "Yes", False),
        ("null", "null", True),
        ("null", "", False),
    ],
)
def test_what_counts_as_the_same_answer(expected: str, answer: str, match: bool) -> None:
    assert answers_match(expected, answer) is match


def test_what_is_no_json_is_none() -> None:
    assert parse_json("{") is None
    assert parse_json("[" * 100_000) is None
    assert parse_json("0") == 0


def test_answers_are_marked_where_an_answer_is_expected() -> None:
    expected = Expected.of(['{"a": 1}', '{"a": 2}', "[]"]).first(2)
    answers = ['{"a":1}', '{"a": 3}']
    assert expected.matches(answers) == [True, False]
    assert expected.valid_json(answers) == [True, True]
    assert expected.valid_json(["{}", "sorry"]) == [True, False]
    some = Expected.of(["yes", None])
    assert some.matches(["yes ", "no"]) == [True, None]
    assert some.valid_json(["1", "2"]) == [None, None], "the answers of the dataset are no JSON"
    assert not Expected.of([]).are_json
