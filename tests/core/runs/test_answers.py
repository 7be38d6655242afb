"""The samples of a run by question."""

from __future__ import annotations

from typing import Any

import pytest

from core.runs.answers import questions_of, verdict
from core.runs.events import SampleEvent


def sample(step: int, prompt: str = "ask", text: str = "", **marks: Any) -> SampleEvent:
    return SampleEvent(step=step, prompt=prompt, text=text, source=f"step-{step}" if step else "base", **marks)


def test_the_answers_of_each_question_come_together() -> None:
    marks = {"expected": "{}", "valid_json": True}
    found = questions_of(
        [
            sample(0, "a", "no", expected="{}", exact_match=False, valid_json=False),
            sample(0, "b", "x"),
            sample(10, "a", "[]", exact_match=False, **marks),
            sample(10, "b", "y"),
            sample(20, "a", "{}", exact_match=True, **marks),
        ]
    )
    assert [(question.prompt, question.expected) for question in found] == [("a", "{}"), ("b", None)]
    assert [(answer.step, answer.text, answer.verdict, answer.is_broken_json) for answer in found[0].answers] == [
        (0, "no", "wrong", True),
        (10, "[]", "wrong", False),
        (20, "{}", "right", False),
    ]
    assert [answer.verdict for answer in found[1].answers] == ["", ""], "runs of earlier versions have no marks"


def test_a_question_that_is_asked_twice_is_two() -> None:
    found = questions_of([sample(step, "same", text) for step in (0, 5) for text in ("first", "second")])
    assert [[answer.text for answer in question.answers] for question in found] == [["first"] * 2, ["second"] * 2]
    assert questions_of([]) == []


@pytest.mark.parametrize(
    ("expected", "match", "is_json", "wanted"),
    [
        ("yes", True, None, "right"),
        ("yes", False, None, "wrong"),
        ("word " * 40, True, None, "right"),
        ("word " * 40, False, None, ""),
        ('{"a": "' + "x" * 200 + '"}', False, True, "wrong"),
        ("[]", False, False, "wrong"),
        (None, None, None, ""),
    ],
)
def test_only_where_there_is_one_right_answer_is_another_one_wrong(
    expected: str | None, match: bool | None, is_json: bool | None, wanted: str
) -> None:
    assert verdict(sample(1, expected=expected, exact_match=match, valid_json=is_json)) == wanted
