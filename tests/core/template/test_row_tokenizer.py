"""Row tokenization in pieces, with the same tokens as for the whole."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from core.data.conversation import RowError
from core.template import row_tokenizer as words
from core.template.answer_turns import RowText
from core.template.row_tokenizer import RowTokenizer, WordTokenizer, any_of, cuts_at_spaces
from core.template.tokenizer import ModelTokenizer
from tests.cases import cases
from tests.core.template.toy_tokenizers import CORPUS, KINDS, make_backend
from tests.examples import examples
from tests.short_list import long_but

CASES = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))

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


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
)
_MARKED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
)


def _split(*expressions: str) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions]
    return pre_tokenizers.Sequence([*steps, _BYTES])


_CUTTING: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    # The last expression of gpt-oss, then DeepSeek's.
    "cased": lambda: _split(_CASED + _TAIL),
    "marked": lambda: _split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _MARKED + _TAIL),
    "digits": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
_KINDS = ("bytes", "words", "composed", *_CUTTING)


@functools.cache
def _tokenizer(kind: str) -> ModelTokenizer:
    if kind in _CUTTING:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = _CUTTING[kind]()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(CORPUS, trainer)
    else:
        backend = make_backend("words" if kind == "composed" else kind, ("<|end|>",))
    if kind == "composed":
        backend = Tokenizer.from_str(backend.to_str())
        backend.normalizer = normalizers.NFC()
        backend.add_tokens([AddedToken("<think>", normalized=True), AddedToken("   ", normalized=False)])
    return ModelTokenizer(backend, special_tokens={})


_PARTS = st.sampled_from(
    [
        *("the", " ticket", "What", "'s", "DON'T", "12345", "7", ".", "...", '("', ")", "<think>", "<|end|>", "\u0301"),
        *("é", "e\u0301", "日本", "Привет", "ᄀ", "ᅡ", "👍🏽", "\u200b", "\ufeff", "_", "/", "#"),
        *(" ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"),
    ]
)
_TEXTS = st.lists(st.lists(st.one_of(_PARTS, st.text(max_size=4)), max_size=14).map("".join), min_size=1, max_size=6)


@cases("kind", _KINDS)
@given(batches=st.lists(_TEXTS, min_size=1, max_size=3))
@example(batches=[["a ticket\n"], ["a ticket\n b"], [" a  b", "", " ", "  ", "a ", "\n a", "\n"]])
def test_words_have_the_tokens_of_their_text(kind: str, batches: list[list[str]]) -> None:
    tokenizer = _tokenizer(kind)
    by_words = WordTokenizer(tokenizer)
    assert by_words.by_words
    for texts in batches:
        assert [ids.tolist() for ids in by_words.encode(texts)] == tokenizer.encode(texts)


#: Latin and neighboring blocks, conjoining letters, and all spaces and punctuation beyond.
_COMMON = (*range(0x400), *range(0x1100, 0x1180), 0x1680, 0x180E, *range(0x1FF0, 0x2070), *range(0x3000, 0x3010))


@pytest.mark.parametrize("codes", long_but([_COMMON], [_COMMON, range(0x3100)]), ids=["common", "all"])
@cases("kind", _KINDS)
def test_characters_have_the_tokens_of_their_text_beside_a_space(kind: str, codes: Sequence[int]) -> None:
    tokenizer = _tokenizer(kind)
    by_words = WordTokenizer(tokenizer)
    for form in ("a{} b", "a {}b", "a{0} {0}", "7 {}7", ".{} ."):
        texts = [form.format(chr(code)) for code in codes]
        assert [ids.tolist() for ids in by_words.encode(texts)] == tokenizer.encode(texts)


def test_words_are_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _tokenizer("words")
    asked: list[str] = []
    encode = tokenizer.encode

    def noted(texts: Sequence[str]) -> list[list[int]]:
        asked.extend(texts)
        return encode(texts)

    monkeypatch.setattr(tokenizer, "encode", noted)
    by_words = WordTokenizer(tokenizer)
    by_words.encode(["the ticket is the ticket", "high ticket"])
    assert sorted(asked) == [" is", " the", " ticket", "high", "the"]
    asked.clear()
    by_words.encode(["high is the ticket"])
    assert not asked


@pytest.mark.parametrize("bound", ["KEPT_WORDS", "KEPT_CHARACTERS"])
def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(words, bound, 40)
    tokenizer = _tokenizer("bytes")
    by_words = WordTokenizer(tokenizer)
    for number in range(60):
        text = f"ticket {number} is new\n"
        assert by_words.encode([text])[0].tolist() == tokenizer.encode([text])[0]
        assert len(by_words._later) <= 44


def _with(change: dict[str, object]) -> ModelTokenizer:
    state = json.loads(make_backend("words", ("<|end|>",)).to_str())
    for name, value in change.items():
        part, _, key = name.partition(".")
        if key:
            state[part][key] = value
        else:
            state[part] = value
    return ModelTokenizer(Tokenizer.from_str(json.dumps(state)), special_tokens={})


@cases("change", CASES["whole texts"])
def test_tokenizers_with_other_rules_get_whole_texts(change: dict[str, object]) -> None:
    assert cuts_at_spaces(_with({}))
    tokenizer = _with(change)
    assert not cuts_at_spaces(tokenizer)
    if "model.dropout" not in change:  # which makes tokens differ from one time to the next
        texts = ["the New York ticket a b  c", "mask a <|end|> b"]
        assert [ids.tolist() for ids in WordTokenizer(tokenizer).encode(texts)] == tokenizer.encode(texts)


@cases("kind", ["first", "always", "legacy"])
def test_tokenizers_that_mark_spaces_get_whole_texts(kind: str) -> None:
    assert not cuts_at_spaces(ModelTokenizer(make_backend(kind, ("<|end|>",)), special_tokens={}))
