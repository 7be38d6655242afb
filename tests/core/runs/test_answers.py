"""Answers by question, and the words in which two of them differ."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.runs.catalog.answers import Against, Span, questions_of, steps_of, verdict, word_diff
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
    assert steps_of(found) == [0, 10, 20]
    twice = questions_of([sample(step, "same", text) for step in (0, 5) for text in ("first", "second")])
    assert [[answer.text for answer in question.answers] for question in twice] == [["first"] * 2, ["second"] * 2]


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
def test_free_text_is_rarely_wrong(expected: str | None, match: bool | None, is_json: bool | None, wanted: str) -> None:
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
    (question,) = questions_of([sample(0, "q", "a"), sample(5, "q", "b")])
    assert text_beside(5, "wanted") == "a", "without a wanted answer the one before takes its place"


#: Texts of few words, so that two of them have some in common.
TEXTS = st.lists(st.sampled_from(["a", "b", "c", " ", "  ", "\n", ",", "ref", "12", "日", "本", "e\u0301", "नि"])).map(
    "".join
)


def cut_out(text: str, spans: tuple[Span, ...]) -> str:
    """The text without the ranges, and without its spaces."""
    kept = "".join(" " if any(start <= place < end for start, end in spans) else c for place, c in enumerate(text))
    return "".join(kept.split())


def parts(before: str, after: str) -> tuple[list[str], list[str]]:
    found = word_diff(before, after)
    assert found.kind == "changed"
    return [before[slice(*span)] for span in found.before], [after[slice(*span)] for span in found.after]


@cases(
    ("before", "after", "gone", "new"),
    [
        ('{"area": "work", "ref": 12}', '{"area": "network", "ref": 13}', ["work", "12"], ["network", "13"]),
        ("Yes", "Yes, because it is so.", [], [", because it is so."]),
        ("It is so, and so on.", "It is so", [", and so on."], []),
        ("I am sorry to hear that.", "I am very sorry to hear", ["that."], ["very"]),
        ("", "any text", [], ["any text"]),
        ("日本語です", "日本人です", ["語"], ["人"]),
        ("one  two\nthree", "one two three", [], []),
        ("the " * 3000, "the " * 1500, [" ".join(["the"] * 1500)], []),
    ],
)
def test_the_words_that_differ_are_found(before: str, after: str, gone: list[str], new: list[str]) -> None:
    found = parts(before, after)
    assert [sorted(map(len, found[0])), sorted(map(len, found[1]))] == [sorted(map(len, gone)), sorted(map(len, new))]
    if not before.startswith("the the"):
        assert found == (gone, new)


LONG = [f"word{number % 400}" for number in range(4000)]


@cases(
    ("before", "after"),
    [
        (" ".join(LONG), " ".join(random.Random(1).sample(LONG, len(LONG)))),
        ("Have you tried turning it off and on again?", '{"ref": 1}'),
        ("billing", "network"),
        ("!?", "..."),
        ("b a " * 9, "x y z w a " * 9),
    ],
)
def test_texts_with_little_in_common_are_rewritten(before: str, after: str) -> None:
    assert word_diff(before, after).kind == "rewritten"
    assert word_diff(after, before).kind == "rewritten"


@given(TEXTS, TEXTS)
def test_what_is_left_of_both_texts_is_the_same(before: str, after: str) -> None:
    found = word_diff(before, after)
    assert (found.kind == "same") == (before == after)
    if found.kind == "changed":
        assert cut_out(before, found.before) == cut_out(after, found.after)
    for text, spans in ((before, found.before), (after, found.after)):
        assert list(spans) == sorted(spans)
        for start, end in spans:
            assert text[start:end] == text[start:end].strip() != ""
            assert text[start] not in "\u0301ि", "an accent is never apart from its letter"


@given(TEXTS)
def test_a_text_that_grows_keeps_what_it_had(text: str) -> None:
    if text.split():
        assert word_diff(text, text + " more").before == ()
