"""Words that differ between two texts."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from core.runs.catalog.answers import Span, word_diff
from tests.cases import cases

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


@cases(
    ("before", "after"),
    [
        ("Have you tried turning it off and on again?", '{"ref": 1}'),
        ("billing", "network"),
        ("!?", "..."),
        ("b a " * 9, "x y z w a " * 9),
    ],
)
def test_texts_with_little_in_common_are_rewritten(before: str, after: str) -> None:
    assert word_diff(before, after).kind == "rewritten"
    assert word_diff(after, before).kind == "rewritten"


def test_long_texts_of_the_same_words_in_another_order_are_given_up() -> None:
    words = [f"word{number % 400}" for number in range(4000)]
    shuffled = random.Random(1).sample(words, len(words))
    assert word_diff(" ".join(words), " ".join(shuffled)).kind == "rewritten"


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
