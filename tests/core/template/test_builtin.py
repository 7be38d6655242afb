"""Built-in templates with base models: usable, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from core.config.schema import TemplateSection
from core.data.conversation import Example, Message, RowError
from core.errors import UserError
from core.template.builtin import NAMED_TEMPLATES, NamedTemplate, stop_texts, template_source
from core.template.mask import Masker
from core.template.render import ChatTemplate
from core.template.row_tokenizer import MaskedRow
from core.template.tokenizer import ModelTokenizer
from tests.cases import cases
from tests.core.template.toy_tokenizers import id_of, make_backend

TALK = Example(
    messages=(
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "Hi."),
        Message("user", "Bye"),
        Message("assistant", "Bye."),
    )
)
ALL = list(NAMED_TEMPLATES.values())
#: Special tokens of each template besides its stops.
OTHERS = {"chatml": ["<|im_start|>"], "qwen": ["<|im_start|>"], "gemma": ["<start_of_turn>"]}


def base_tokenizer(named: NamedTemplate, *, complete: bool = True) -> ModelTokenizer:
    """A base model's tokenizer, with the template's own tokens or without; they end no text of the model's."""
    specials = ("<s>", "</s>", *named.stops, *OTHERS.get(named.name, ())) if complete else ("<s>", "</s>")
    backend = make_backend("words", specials)
    return ModelTokenizer(
        backend, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}, stop_ids=[id_of(backend, "</s>")]
    )


def mask(named: NamedTemplate, example: Example, *, complete: bool = True) -> MaskedRow | RowError:
    tokenizer = base_tokenizer(named, complete=complete)
    (row,) = Masker(tokenizer, ChatTemplate(named.source, tokenizer.special_tokens)).mask([example])
    return row


@cases("named", ALL, ids=lambda named: named.name)
def test_a_conversation_is_one_row_and_each_answer_is_learned_with_its_end(named: NamedTemplate) -> None:
    row = mask(named, TALK)
    assert isinstance(row, MaskedRow), row.message
    assert not row.further
    tokenizer = base_tokenizer(named)
    learned = [token for token, wanted in zip(row.input_ids, row.supervised, strict=True) if wanted]
    stop = named.stops[0] if named.stops else "</s>"
    assert tokenizer.decode(learned).replace(" ", "") == f"Hi.{stop}Bye.{stop}"
    assert "Be brief." in tokenizer.decode(list(row.input_ids))


@cases("named", [named for named in ALL if named.stops], ids=lambda named: named.name)
def test_a_template_whose_tokens_the_model_lacks_is_refused(named: NamedTemplate) -> None:
    row = mask(named, TALK, complete=False)
    assert isinstance(row, RowError)
    assert row.code == "no_stop_token"


@cases("name", ["alpaca", "vicuna", "zephyr", "mistral"])
def test_some_need_no_tokens_of_their_own(name: str) -> None:
    assert isinstance(mask(NAMED_TEMPLATES[name], TALK, complete=False), MaskedRow)


@cases("named", ALL, ids=lambda named: named.name)
def test_tools_are_shown_or_refused(named: NamedTemplate) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = (Message("user", "1+1"), Message("assistant", "", tool_calls=(call,)), Message("tool", "2"))
    tools = ({"type": "function", "function": {"name": "add", "description": "Adds up."}},)
    row = mask(named, Example(messages=(*turns, Message("assistant", "2")), tools=tools))
    if named.name in ("chatml", "qwen"):
        assert isinstance(row, MaskedRow), row.message
        assert "Adds up." in base_tokenizer(named).decode(list(row.input_ids))
    else:
        assert isinstance(row, RowError)
        assert "no form for tools" in row.message


def test_the_configuration_offers_them_all() -> None:
    (choices, _) = get_args(TemplateSection.model_fields["name"].annotation)
    assert list(get_args(choices)) == list(NAMED_TEMPLATES)


def test_a_template_is_chosen_by_file_or_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages }}", encoding="utf-8")
    assert template_source(None, None) is None
    assert template_source(str(path), None) == "{{ messages }}"
    assert template_source(None, "chatml") == NAMED_TEMPLATES["chatml"].source
    with pytest.raises(UserError, match="both"):
        template_source(str(path), "chatml")
    with pytest.raises(UserError, match=r"nowhere\.jinja"):
        template_source(str(tmp_path / "nowhere.jinja"), None)
    with pytest.raises(UserError, match="no template called x"):
        template_source(None, "x")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"mine\.jinja"):
        template_source(str(path), None)


def test_the_stops_of_a_template_are_known_by_its_text() -> None:
    assert stop_texts(NAMED_TEMPLATES["llama3"].source) == ("<|eot_id|>",)
    assert stop_texts("{{ messages }}") == ()
