"""Scores of answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.evaluation.score import Expected, SchemaCheck, answers_match, is_json, token_f1
from tests.cases import cases

WORDS = st.lists(st.text("bcdefghij", min_size=2, max_size=5), min_size=1, max_size=8)


@cases(
    ("expected", "answer", "score"),
    [("the cat sat", "A cat sat!", 1.0), ("", "", 1.0), ("the", "a", 1.0), ("!?", "...", 1.0), ("", "dog", 0.0)],
)
def test_token_f1_is_that_of_squad(expected: str, answer: str, score: float) -> None:
    assert token_f1(expected, answer) == pytest.approx(score)


@given(first=WORDS, second=WORDS)
def test_token_f1_is_symmetric_and_does_not_look_at_order_case_or_punctuation(
    first: list[str], second: list[str]
) -> None:
    one, other = " ".join(first), " ".join(second)
    score = token_f1(one, other)
    assert 0 <= score <= 1
    assert score == pytest.approx(token_f1(other, one))
    assert (score == 1) is (sorted(first) == sorted(second))
    assert token_f1(f"The {one.upper()}.", ", ".join(reversed(first))) == 1
    same = sum(min(first.count(word), second.count(word)) for word in set(first))
    assert score == pytest.approx(2 * same / (len(first) + len(second)))


SCHEMA = {
    "type": "object",
    "properties": {"area": {"enum": ["login", "printer"]}, "ref": {"type": ["integer", "null"]}},
    "required": ["area"],
}


@cases(
    ("answer", "is_valid", "fits"),
    [
        ('{"area": "login"}', True, {"object"}),
        ('{"area": "login", "ref": null}', True, {"object"}),
        ('{"area": "mars"}', True, set()),
        ("{}", True, set()),
        (" null\n", True, {"null"}),
        ("0", True, set()),
        ("nil", False, set()),
        ('Sure: {"area": "login"}', False, set()),
        ("[" * 100_000, False, set()),
    ],
)
def test_an_answer_is_held_against_its_schema(answer: str, is_valid: bool, fits: set[str]) -> None:
    assert is_json(answer) is is_valid
    schemas = {"object": SCHEMA, "null": {"type": "null"}}
    assert {name for name, schema in schemas.items() if SchemaCheck(schema, "Prompt 1").accepts(answer)} == fits


@cases("schema", [{"type": "objekt"}, {"minLength": "a"}, [], "object"])
def test_what_is_no_schema_is_refused(schema: object) -> None:
    with pytest.raises(UserError, match=r"^Prompt 1: the schema is no JSON"):
        SchemaCheck(schema, "Prompt 1")


@cases("address", ["http://127.0.0.1:9/x.json", "file:///etc/hostname", "#/$defs/none"])
def test_nothing_outside_of_a_schema_is_fetched(address: str) -> None:
    with pytest.raises(UserError, match="refers to") as refused:
        SchemaCheck({"$ref": address}, "Prompt 1").accepts("{}")
    assert address.rpartition("/")[2] in refused.value.message


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
