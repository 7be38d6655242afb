"""The samples of a run by question."""

from __future__ import annotations

from typing import Any

from core.runs.catalog.answers import Against, questions_of, steps_of, verdict
from core.runs.record.events import SampleEvent
from tests.cases import cases


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


@cases(
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


def test_what_an_answer_stands_beside() -> None:
    events = [
        sample(step, "q", text, expected="yes") for step, text in ((0, "no"), (10, "no"), (20, "maybe"), (30, "yes"))
    ]
    (question,) = questions_of(events)

    def text_beside(step: int, against: Against) -> str | None:
        found = question.beside(step, against)
        return None if found is None else found.text

    assert question.at(20) is question.answers[2]
    assert question.at(25) is None
    assert [text_beside(step, "former") for step in (0, 10, 30)] == [None, "no", "maybe"]
    assert [text_beside(step, "first") for step in (0, 10, 30)] == [None, "no", "no"]
    assert text_beside(30, "wanted") is None, "the wanted answer is beside it"
    assert question.repeats == {10}


def test_without_a_wanted_answer_the_one_before_takes_its_place() -> None:
    questions = questions_of([sample(0, "q", "a"), sample(5, "q", "b"), sample(5, "other", "c")])
    found = questions[0].beside(5, "wanted")
    assert found is not None
    assert found.text == "a"
    assert questions[1].beside(5, "former") is None
    assert steps_of(questions) == [0, 5]
