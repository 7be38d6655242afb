"""Tokenizer loading from a model's directory, or an error with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from core.errors import UserError
from core.template.tokenizer import ModelTokenizer, load_tokenizer
from tests.cases import cases
from tests.core.template.toy_tokenizers import KINDS, make_backend, save
from tests.examples import examples

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


@cases(
    ("config", "size"),
    [
        ({}, None),
        ({"vocab_size": 1000}, 1000),
        ({"vocab_size": 5, "text_config": {"vocab_size": 1000}}, 1000),
        ({"vocab_size": 1000, "text_config": {}}, 1000),
        ({"vocab_size": "many"}, None),
        ({"vocab_size": 0}, None),
    ],
)
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
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(
    tmp_path: Path, name: str, content: bytes | Path | None, message: str
) -> None:
    directory = saved_in(tmp_path)
    path = directory / name
    if content is None:
        path.rename(tmp_path / "away")
    elif isinstance(content, Path):
        path.rename(directory / content)
    else:
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


@cases("kind", KINDS)
@settings(max_examples=examples(80), deadline=None)
@given(parts=st.lists(st.sampled_from(["a", " ", "\n", "<", "|>", "the ", "<|end|>", "</s>", "é"]), max_size=10))
def test_the_parts_between_cuts_have_the_tokens_of_the_whole(kind: str, parts: list[str]) -> None:
    tokenizer = make(kind)
    cuts = tokenizer.cuts("<|end|>")
    assert set(cuts) == (set() if kind == "first" else {"<|end|>"})
    whole = "".join(parts)
    pieces = whole.split("<|end|>") if cuts else [whole]
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        ids += ([cuts["<|end|>"]] if number else []) + (tokenizer.encode([piece])[0] if piece else [])
    assert ids == tokenizer.encode([whole])[0]


@cases(
    "added",
    [AddedToken("x<|end|>", special=True), AddedToken("x<|", special=False), AddedToken("<|end|>y", special=True)],
)
def test_no_cut_is_at_a_token_that_another_could_take_a_part_of(added: AddedToken) -> None:
    backend = Tokenizer.from_str(make_backend("words", SPECIALS).to_str())
    backend.add_tokens([added])
    assert "<|end|>" not in ModelTokenizer(backend, special_tokens={}).cuts("<|end|></s>")
    assert "</s>" in ModelTokenizer(backend, special_tokens={}).cuts("<|end|></s>")


@cases("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_template_that_is_too_large_is_said_so(tmp_path: Path, name: str) -> None:
    directory = saved_in(tmp_path)
    text = "x" * (5 << 20)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    (directory / name).write_text(text if name.endswith("jinja") else json.dumps({"chat_template": text}))
    with pytest.raises(UserError, match="larger than 256 KiB"):
        load_tokenizer(directory)
