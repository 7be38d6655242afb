"""The walk through the answers of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from core.runs.answers import Question, SampleAnswer
from core.runs.history import RunHistory
from core.runs.schedule import Schedule
from core.runs.state import RunState
from core.runs.store import Run
from tests.cases import cases
from tui.state import RunView
from tui.widgets.answers import AnswerWalk, without_answers


def question(prompt: str, *steps: int, expected: str | None = None) -> Question:
    return Question(prompt, expected, [SampleAnswer(step, f"at {step}", "", is_broken_json=False) for step in steps])


def walk_to(*questions: Question) -> AnswerWalk:
    walk = AnswerWalk()
    walk.show(questions)
    return walk


def test_it_follows_the_newest_evaluation_until_it_is_led_away() -> None:
    walk = walk_to(question("a", 0, 10))
    assert walk.step == 10
    walk.show([question("a", 0, 10, 20)])
    assert walk.step == 20
    walk.walk(-1)
    walk.show([question("a", 0, 10, 20, 30)])
    assert walk.step == 10
    walk.walk(-1)
    assert (walk.step, walk.leads(-1), walk.leads(1)) == (0, False, True)
    walk.walk(-1)
    assert walk.step == 0, "there is nothing before the untouched model"
    for _ in range(5):
        walk.walk(1)
    assert (walk.step, walk.leads(1)) == (30, False)
    walk.show([question("a", 0, 10, 20, 30, 40)])
    assert walk.step == 40, "at the newest one it follows again"


def test_an_evaluation_that_a_rollback_took_away_is_left() -> None:
    walk = walk_to(question("a", 0, 10, 20, 30))
    walk.walk(-1)
    walk.show([question("a", 0, 10)])
    assert walk.step == 10


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


def test_an_empty_walk_leads_nowhere() -> None:
    walk = walk_to()
    walk.turn(1)
    walk.walk(-1)
    assert (walk.place, walk.step, walk.in_turn, walk.leads(-1)) == (0, 0, [], False)


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
