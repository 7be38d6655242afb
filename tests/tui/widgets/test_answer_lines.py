"""Answers over time in lines."""

from __future__ import annotations

from core.runs.answers import Question, SampleAnswer
from tests.cases import cases
from tui.widgets.answers import question_lines

QUESTION = Question(
    "Router 12 is dead,\nwhole office waiting",
    '{"area": "network"}',
    [
        SampleAnswer(0, "I'm sorry to hear that your router is not working. " * 20, "wrong", is_broken_json=True),
        SampleAnswer(10, '{"area": "work"}', "wrong", is_broken_json=False),
        SampleAnswer(30, '{"area": "network"}', "right", is_broken_json=False),
    ],
)


def lines(question: Question, width: int = 70, height: int = 40) -> list[str]:
    return [line.plain.rstrip() for line in question_lines(question, width, height)]


def test_the_question_the_wanted_answer_and_each_answer_stand_below_each_other() -> None:
    shown = lines(QUESTION)
    assert shown[:4] == [
        "ask      Router 12 is dead,",
        "         whole office waiting",
        'wanted   {"area": "network"}',
        "step 0   ✗ no JSON  I'm sorry to hear that your router is not working.",
    ]
    assert shown[-2:] == ['step 10  ✗ {"area": "work"}', 'step 30  ✓ {"area": "network"}']
    assert max(map(len, shown)) <= 70
    assert len(shown) == 3 + 8 + 2
    assert shown[10].endswith(" …")


def test_texts_are_cut_so_that_all_answers_are_in_view() -> None:
    assert len(lines(QUESTION, height=8)) == 8
    assert len(lines(QUESTION, height=1)) == 6


def test_without_marks_there_is_no_column_for_them() -> None:
    plain = Question(
        "q", None, [SampleAnswer(0, "one", "", is_broken_json=False), SampleAnswer(5, "  ", "", is_broken_json=False)]
    )
    assert lines(plain) == ["ask     q", "step 0  one", "step 5  no answer"]


@cases("width", [1, 12, 20])
def test_a_narrow_pane_is_no_error(width: int) -> None:
    assert lines(QUESTION, width)


def test_wide_characters_stay_in_their_columns() -> None:
    question = Question("日本語" * 20, "はい", [SampleAnswer(0, "いいえ" * 30, "wrong", is_broken_json=False)])
    assert all(line.cell_length <= 30 for line in question_lines(question, 30, 40))
