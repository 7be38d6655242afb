"""Answers of a run over time: in lines, beside each other, and walked through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from textual.content import Content

from core.runs.catalog.answers import Question, SampleAnswer, Verdict
from core.runs.outlook.time_left import Schedule
from core.runs.record.history import RunHistory
from core.runs.record.state import RunState
from core.runs.record.store import Run
from tests.cases import cases
from tests.tui.harness import FORBIDDEN, HOSTILE
from tui.state import RunView
from tui.widgets.answers import CHANGED, MOST_CHARACTERS, AnswerWalk, question_lines, walk_lines, without_answers


def answer(step: int, text: str, verdict: Verdict = "", *, broken: bool = False) -> SampleAnswer:
    return SampleAnswer(step, text, verdict, is_broken_json=broken)


def question(prompt: str, *steps: int, expected: str | None = None) -> Question:
    return Question(prompt, expected, [answer(step, f"at {step}") for step in steps])


QUESTION = Question(
    "Router 12 is dead,\nwhole office waiting",
    '{"area": "network"}',
    [
        answer(0, "I'm sorry to hear that your router is not working. " * 20, "wrong", broken=True),
        answer(10, '{"area": "work"}', "wrong"),
        answer(30, '{"area": "network"}', "right"),
    ],
)


def answer_texts(question: Question, width: int = 70, height: int = 40) -> list[str]:
    return [line.plain.rstrip() for line in question_lines(question, width, height)]


def test_the_question_the_wanted_answer_and_each_answer_stand_below_each_other() -> None:
    shown = answer_texts(QUESTION)
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
    assert len(answer_texts(QUESTION, height=8)) == 8
    assert len(answer_texts(QUESTION, height=1)) == 6


def test_without_marks_there_is_no_column_for_them() -> None:
    plain = Question("q", None, [answer(0, "one"), answer(5, "  ")])
    assert answer_texts(plain) == ["ask     q", "step 0  one", "step 5  no answer"]


SKY = (
    "The sky is blue because of the sun.",
    "The sky is blue, as air scatters light. " * 5,
    "The sky is blue, as air scatters sunlight. " * 5,
)


ROUTER = Question(
    "Router 12 is dead",
    '{"ref": 12}',
    [
        answer(0, "Have you tried turning it off and on again?", "wrong", broken=True),
        answer(30, '{"ref": 1}', "wrong"),
        answer(45, '{"ref": 1}', "wrong"),
        answer(60, '{"ref": 12}', "right"),
    ],
)
BLUE = Question("Why is the sky blue?", None, [answer(step, text) for step, text in zip((0, 30, 60), SKY, strict=True)])


def walk_to(*questions: Question, back: int = 0, layouts: int = 0) -> AnswerWalk:
    walk = AnswerWalk()
    walk.show(questions)
    for _ in range(back):
        walk.walk(-1)
    for _ in range(layouts):
        walk.turn_layout()
    return walk


def lines(walk: AnswerWalk, width: int = 76, height: int = 10) -> list[str]:
    return [line.plain.rstrip() for line in walk_lines(walk, width, height)]


def marked(lines: list[Content]) -> list[str]:
    """The texts that are marked as changed, by line."""
    return [line.plain[span.start : span.end] for line in lines for span in line.spans if span.style == CHANGED]


def test_what_did_not_change_and_what_is_all_new_is_reported() -> None:
    assert lines(walk_to(ROUTER, back=1))[-2:] == ['step 45  ✗ {"ref": 1}', "step 30  ✗ the same"]
    walk = walk_to(ROUTER, back=2)
    assert lines(walk)[2:] == [
        "steps   (0 ✗)[30 ✗] 45 ✗ =  60 ✓   rewritten",
        'step 30  ✗ {"ref": 1}',
        "step 0   ✗ no JSON  Have you tried turning it off and on again?",
    ]
    assert marked(walk_lines(walk, 76, 10)) == []
    assert lines(walk_to(ROUTER, back=3))[2:] == [
        "steps   [0 ✗] 30 ✗  45 ✗ =  60 ✓",
        "step 0   ✗ no JSON  Have you tried turning it off and on again?",
        "before   no earlier answer",
    ]


def test_an_only_answer_and_the_first_one_have_the_whole_width() -> None:
    only = Question("q", None, [answer(0, SKY[2])])
    assert [line[:6] for line in lines(walk_to(only), 100)] == ["ask   ", "step 0", " " * 6, " " * 6]
    first = lines(walk_to(BLUE, back=2), 100)
    assert first[-1] == "before   no earlier answer"
    assert not any("│" in line for line in first)


def test_it_can_stand_beside_the_first_the_wanted_and_all() -> None:
    assert lines(walk_to(ROUTER, layouts=1))[-1].startswith("step 0   ✗ no JSON  Have you")
    walk = walk_to(ROUTER, back=1, layouts=2)
    assert lines(walk)[1:] == ["steps    0 ✗  30 ✗ [45 ✗ =] 60 ✓", 'step 45  ✗ {"ref": 1}', 'wanted   {"ref": 12}']
    assert marked(walk_lines(walk, 76, 10)) == ["1", "12"]
    walk = walk_to(ROUTER, layouts=3)
    assert [line[:7] for line in lines(walk)] == ["ask    ", "wanted ", "step 0 ", "step 30", "step 45", "step 60"]
    assert marked(walk_lines(walk, 76, 10)) == ["12"], "each is marked against the one before it"


def test_answers_are_never_cut_to_the_height() -> None:
    long = Question("q " * 900, "w " * 900, [answer(0, "a " * 900), answer(1, "b " * 900)])
    shown = lines(walk_to(long), 76, 10)
    assert sum(line.count("a ") + line.endswith("a") for line in shown) >= 900
    assert len([line for line in shown if line.startswith("ask") or " q q" in line]) == 2
    endless = Question("q", None, [answer(0, "a"), answer(1, "b " * MOST_CHARACTERS)])
    assert lines(walk_to(endless))[-2].endswith("more characters")


def test_the_next_questions_fill_the_room_that_is_left() -> None:
    walk = walk_to(ROUTER, BLUE)
    both = lines(walk, 200, 30)
    assert [line for line in both if line.startswith("ask")] == [
        "ask      Router 12 is dead",
        "ask      Why is the sky blue?",
    ]
    assert not any("sky" in line for line in lines(walk, 200, 9)), "only whole ones"
    walk.turn(1)
    assert [line.split()[1] for line in lines(walk, 200, 30) if line.startswith("ask")] == ["Why", "Router"]


def test_a_question_that_was_not_asked_at_a_step_says_so() -> None:
    late = Question("later", None, [answer(30, "x")])
    assert lines(walk_to(late, BLUE), 76, 4) == ["ask      later", "step 60  not answered", "step 30  x"]


def test_many_evaluations_are_cut_around_the_one_looked_at() -> None:
    many = Question("q", None, [answer(step, str(step)) for step in range(0, 4000, 20)])
    for back in (0, 100, 199):
        course = next(line for line in lines(walk_to(many, back=back)) if line.startswith("steps"))
        assert f"[{3980 - 20 * back}]" in course
        assert len(course) <= 76
        assert "…" in course


@cases("width", [1, 12, 40, 130])
@cases("layouts", range(4))
def test_hostile_text_and_any_width(width: int, layouts: int) -> None:
    hostile = Question(HOSTILE, HOSTILE, [answer(0, HOSTILE), answer(5, HOSTILE + "\n日本語" * 40), answer(9, "")])
    for back in range(3):
        found = walk_lines(walk_to(hostile, BLUE, back=back, layouts=layouts), width, 12)
        assert found
        assert not FORBIDDEN & set("".join(line.plain for line in found))
        if width >= 40:
            assert max(line.cell_length for line in found) <= width


def test_it_follows_the_newest_evaluation_until_it_is_led_away() -> None:
    walk = walk_to(question("a", 0, 10))
    assert walk.step == 10
    walk.show([question("a", 0, 10, 20)])
    assert walk.step == 20
    walk.walk(-1)
    walk.show([question("a", 0, 10, 20, 30)])
    assert walk.step == 10
    walk.walk(-1)
    assert walk.step == 0
    walk.walk(-1)
    assert walk.step == 0, "there is nothing before the untouched model"
    for _ in range(5):
        walk.walk(1)
    assert walk.step == 30
    walk.show([question("a", 0, 10, 20, 30, 40)])
    assert walk.step == 40, "at the newest one it follows again"
    walk.walk(-1)
    walk.show([question("a", 0, 10)])
    assert walk.step == 10, "a rollback took the other one away"
    walk.show([])
    walk.turn(1)
    walk.walk(-1)
    assert (walk.place, walk.step, walk.in_turn) == (0, 0, [])


def test_questions_follow_each_other_in_a_ring() -> None:
    walk = walk_to(question("a", 0), question("b", 0), question("c", 0))
    walk.turn(-1)
    assert [item.prompt for item in walk.in_turn] == ["c", "a", "b"]
    walk.turn(2)
    assert [item.prompt for item in walk.in_turn] == ["b", "c", "a"]
    walk.show([question("a", 0)])
    assert walk.place == 0


def test_the_wanted_answers_are_a_layout_where_there_are_some() -> None:
    def layouts(walk: AnswerWalk) -> list[str]:
        found: list[str] = []
        for _ in range(4):
            found.append(walk.layout)
            walk.turn_layout()
        return found

    assert layouts(walk_to(question("a", 0, expected="x"), question("b", 0))) == ["former", "first", "wanted", "all"]
    assert layouts(walk_to(question("a", 0))) == ["former", "first", "all", "former"]
    walk = walk_to(question("a", 0, 5))
    walk.turn_layout()
    walk.turn_layout()
    walk.walk(-1)
    assert walk.layout == "former", "of all steps none is gone to"


@cases(
    ("changes", "words"),
    [
        ({}, "No answers yet"),
        ({"state": RunState(state="finished")}, "ended before it was evaluated"),
        ({"is_partial": True}, "are being read"),
        ({"schedule": Schedule.of({})}, "it holds no rows out"),
        ({"schedule": Schedule.of({"data.eval": "x.jsonl", "eval.samples": 0})}, "eval.samples is 0"),
        ({"schedule": Schedule.of({"data.eval": "x.jsonl", "eval.exact_match": True})}, "No answers yet"),
        ({"schedule": Schedule.of({"eval.prompts": "p.txt"})}, "No answers yet"),
    ],
)
def test_why_there_are_no_answers(changes: dict[str, Any], words: str) -> None:
    view = RunView(Run(Path("/runs/x")), RunState(state="training"), RunHistory())
    assert words in without_answers(replace(view, **changes))
