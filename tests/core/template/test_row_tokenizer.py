"""Row tokenization in pieces, with the same tokens as for the whole."""

from __future__ import annotations

import functools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.conversation import RowError
from core.template.answer_turns import RowText
from core.template.row_tokenizer import RowTokenizer, any_of
from core.template.tokenizer import ModelTokenizer
from tests.cases import cases
from tests.core.template.toy_tokenizers import KINDS, make_backend
from tests.examples import examples

SPECIALS = ("<s>", "</s>", "<|end|>")
PIECES = ["a", "b c", " ", "\n", "\n\n", "<|end", "|>", "é", "the answer", ":"]


@functools.cache
def make(kind: str, *, rstrip: bool = False) -> tuple[ModelTokenizer, RowTokenizer]:
    tokenizer = ModelTokenizer(make_backend(kind, SPECIALS, rstrip), special_tokens={})
    stop = tokenizer.token_id("</s>")
    assert stop is not None
    return tokenizer, RowTokenizer(tokenizer, [stop], "<s></s><|end|>")


@st.composite
def rows(draw: st.DrawFn) -> RowText:
    """Turns of a prompt and an answer each."""
    text, spans = "", []
    for _ in range(draw(st.integers(1, 3))):
        text += "<s>" + "".join(draw(st.lists(st.sampled_from(PIECES), max_size=4)))
        start = len(text)
        text += "".join(draw(st.lists(st.sampled_from(PIECES), max_size=4))) + "</s>"
        spans.append((start, len(text)))
    return RowText(text + draw(st.sampled_from(["", "\n"])), tuple(spans))


@cases("kind", KINDS)
@cases("rstrip", [False, True])
@settings(max_examples=examples(100), deadline=None)
@given(batch=st.lists(rows(), min_size=1, max_size=4))
def test_each_answer_follows_the_tokens_of_its_prompt(kind: str, rstrip: bool, batch: list[RowText]) -> None:
    tokenizer, pieces = make(kind, rstrip=rstrip)
    (stop,) = tokenizer.encode(["</s>"])[0]
    for row, found in zip(batch, pieces.tokenize(batch), strict=True):
        assert not isinstance(found, RowError), found
        learned = 0
        for part in found:
            ids, supervised = list(part.input_ids), list(part.supervised)
            for start in range(len(ids)):
                if not supervised[start] or (start and supervised[start - 1]):
                    continue
                end = ids.index(stop, start)
                assert all(supervised[start : end + 1])
                number = sum(token == stop for token in ids[:start])
                assert ids[:start] == tokenizer.encode([row.text[: row.spans[number][0]]])[0]
                learned += 1
        assert learned == len(row.spans)
        whole = tokenizer.encode([row.text])[0]
        prompts = [tokenizer.encode([row.text[:start]])[0] for start, _ in row.spans]
        if all(whole[: len(prompt)] == prompt for prompt in prompts):
            assert [list(part.input_ids) for part in found] == [whole]


def test_an_answer_whose_stop_is_no_token_is_refused() -> None:
    _, pieces = make("words")
    (found,) = pieces.tokenize([RowText("<s>question answer", ((11, 18),))])
    assert isinstance(found, RowError)
    assert found.code == "no_stop_token"


@given(
    texts=st.lists(st.text(st.sampled_from(list("ab|.<")), min_size=1, max_size=5), max_size=12),
    text=st.text(st.sampled_from(list("ab|.<")), max_size=30),
)
def test_any_of_finds_the_longest_of_many_texts(texts: list[str], text: str) -> None:
    plain = re.compile("|".join(map(re.escape, sorted(set(texts), key=len, reverse=True))) or "(?!)")
    assert [found.group() for found in any_of(texts).finditer(text)] == [
        found.group() for found in plain.finditer(text)
    ]


def test_any_of_thousands_is_fast_to_make_and_splits_with_what_it_finds() -> None:
    pattern = any_of(f"<unused{number}>" for number in range(6000))
    assert pattern.split("a<unused17>b<unused5999><unused>") == ["a", "<unused17>", "b", "<unused5999>", "<unused>"]
