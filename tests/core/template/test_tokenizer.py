"""Tokenizer loading from a model's directory, and rows tokenized word by word, compared with whole texts."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from core.data.conversation import RowError
from core.errors import UserError
from core.template import tokenizer as words
from core.template.answer_turns import RowText
from core.template.tokenizer import ModelTokenizer, RowTokenizer, WordTokenizer, any_of, cuts_at_spaces, load_tokenizer
from tests.cases import cases
from tests.core.template.toy_tokenizers import CORPUS, KINDS, make_backend, save
from tests.examples import examples
from tests.short_list import long_but

CASES = yaml.safe_load(Path(__file__).with_name("snippets.yaml").read_text(encoding="utf-8"))
SPECIALS = ("<s>", "</s>", "<|end|>")


def make(kind: str = "words") -> ModelTokenizer:
    return ModelTokenizer(make_backend(kind, SPECIALS), special_tokens={"eos_token": "</s>"})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved_in(tmp_path)


def saved_in(place: Path) -> Path:
    return save(
        place / "model",
        make_backend("words", SPECIALS),
        template="{{ messages }}",
        stops=("<|end|>",),
        bos_token="<s>",
        eos_token="</s>",
    )


def edit(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**data, **values}))


def test_a_directory_is_read(directory: Path) -> None:
    edit(directory / "tokenizer_config.json", model_max_length=1e30, pad_token={"content": "<s>", "lstrip": False})
    edit(directory / "config.json", max_position_embeddings=4096, eos_token_id=0)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>"}
    assert [tokenizer.token_text(token) for token in tokenizer.stop_ids] == ["<|end|>", "</s>"]
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.max_length == 4096
    assert {tokenizer.token_text(token) for token in tokenizer.special_ids} == set(SPECIALS)
    assert tokenizer.decode(tokenizer.encode(["hi<|end|>"])[0]) == "hi<|end|>"
    assert tokenizer.encode([]) == []


@cases(("config", "size"), CASES["vocabularies"])
def test_the_vocabulary_is_the_models_where_that_is_known(
    tmp_path: Path, config: dict[str, Any], size: int | None
) -> None:
    directory = saved_in(tmp_path)
    edit(directory / "config.json", **config)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.vocabulary_size == (size or tokenizer.backend.get_vocab_size(with_added_tokens=True))


def test_where_stops_and_templates_may_be(directory: Path) -> None:
    (directory / "generation_config.json").unlink()
    edit(directory / "config.json", text_config={"eos_token_id": [0, 2], "max_position_embeddings": 7})
    (directory / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]
    edit(directory / "tokenizer_config.json", chat_template=named, eos_token=None)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.stop_ids == (0, 2)
    assert tokenizer.max_length == 7
    assert (tokenizer.chat_template, tokenizer.tool_template) == ("a", "b")
    own = tokenizer.own_template()
    assert own is not None
    assert own.render([{"role": "user", "content": "q"}]) == "a"
    assert own.render([{"role": "user", "content": "q"}], tools=[{"type": "function"}]) == "b"
    more = directory / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("d")
    assert load_tokenizer(directory).tool_template == "d"
    (more / "tool_use.jinja").unlink()
    edit(directory / "chat_template.json", chat_template="c")
    edit(directory / "special_tokens_map.json", unk_token="<s>")
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.chat_template, tokenizer.tool_template) == ("c", None)
    assert tokenizer.special_tokens["unk_token"] == "<s>"


def test_tokens_that_only_the_configuration_knows_are_added(directory: Path) -> None:
    edit(
        directory / "tokenizer_config.json",
        added_tokens_decoder={
            "900": {"content": "<new>", "special": True, "normalized": False},
            "1": {"content": "</s>", "special": True},
        },
    )
    tokenizer = load_tokenizer(directory)
    assert len(tokenizer.encode(["<new>"])[0]) == 1
    assert tokenizer.token_id("<new>") in tokenizer.special_ids


def test_what_truncation_and_padding_were_saved_is_not_used(directory: Path) -> None:
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(directory / "tokenizer.json"))
    assert 2 < len(load_tokenizer(directory).encode(["What is the capital of France?"])[0]) < 50


@cases(
    ("name", "content", "message"),
    [
        ("", None, "is not a directory"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", Path("tokenizer.model"), "only the training process reads"),
        ("tokenizer.json", b"{", "cannot be read as a tokenizer"),
        ("tokenizer.json", b"\xff\x00", "cannot be read as a tokenizer"),
        ("tokenizer_config.json", b"[1]", "tokenizer_config.json is not a JSON object"),
        ("config.json", b"{]", "config.json is damaged"),
        ("generation_config.json", b"[", "generation_config.json is damaged: it is not JSON"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja cannot be read"),
        ("chat_template.jinja", b"x" * (5 << 20), "larger than 256 KiB"),
        ("chat_template.json", b'{"chat_template": "%s"}' % (b"x" * (5 << 20)), "larger than 256 KiB"),
        ("tokenizer_config.json", b'{"chat_template": "%s"}' % (b"x" * (5 << 20)), "larger than 256 KiB"),
    ],
)
def test_what_cannot_be_read_is_shown_in_one_sentence(
    tmp_path: Path, name: str, content: bytes | Path | None, message: str
) -> None:
    directory = saved_in(tmp_path)
    path = directory / name
    if content is None:
        path.rename(tmp_path / "away")
    elif isinstance(content, Path):
        path.rename(directory / content)
    else:
        if b"chat_template" in content:
            (directory / "chat_template.jinja").unlink()
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(directory)
    assert message in caught.value.message
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message
    assert caught.value.hint


@cases("kind", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x1F700), max_size=40))
def test_the_texts_of_tokens_are_the_text(kind: str, text: str) -> None:
    tokenizer = make(kind)
    ids = tokenizer.encode([text])[0]
    texts = tokenizer.token_texts(ids)
    assert len(texts) == len(ids)
    if kind in ("bytes", "words"):
        assert "".join(texts) == text
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    else:
        # They put a space before a text, and write spaces as a character that is then a space to them as well.
        text = text.replace("\u2581", " ")
        assert "".join(texts) in (text, f" {text}")


def test_a_character_of_several_tokens_is_shown_with_the_last() -> None:
    tokenizer = make("bytes")
    ids = tokenizer.encode(["a🙂b"])[0]
    assert [text for text in tokenizer.token_texts(ids) if text] == ["a", "🙂", "b"]
    assert "\ufffd" in [tokenizer.token_text(token) for token in ids]
    assert tokenizer.token_text(10**6) == "<1000000>"


@cases("kind", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(
    before=st.sampled_from(["x", "the answer: ", "a\n", "</s>"]),
    after=st.text(st.sampled_from(list("ab .\n-Ñ中")), min_size=1, max_size=12),
)
def test_a_continuation_reads_as_the_text_it_continues(kind: str, before: str, after: str) -> None:
    tokenizer = make(kind)
    ids = [*tokenizer.encode([before])[0], *tokenizer.encode_continuation(after)]
    assert tokenizer.decode(ids).lstrip(" ") == f"{before}{after}"


@cases(
    "added",
    [AddedToken("x<|end|>", special=True), AddedToken("x<|", special=False), AddedToken("<|end|>y", special=True)],
)
def test_no_cut_is_at_a_token_that_another_could_take_a_part_of(added: AddedToken) -> None:
    backend = Tokenizer.from_str(make_backend("words", SPECIALS).to_str())
    backend.add_tokens([added])
    assert "<|end|>" not in ModelTokenizer(backend, special_tokens={}).cuts("<|end|></s>")
    assert "</s>" in ModelTokenizer(backend, special_tokens={}).cuts("<|end|></s>")


PIECES = ["a", "b c", " ", "\n", "\n\n", "<|end", "|>", "é", "the answer", ":"]


@functools.cache
def make_rows(kind: str, *, rstrip: bool = False) -> tuple[ModelTokenizer, RowTokenizer]:
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
    tokenizer, pieces = make_rows(kind, rstrip=rstrip)
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
    _, pieces = make_rows("words")
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
