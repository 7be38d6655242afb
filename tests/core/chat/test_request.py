from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.chat.request import MESSAGE_LIMIT, ChatRequest, GenerationSettings
from core.config.schema import ChatSection
from core.errors import UserError
from tests.cases import cases

REFUSED = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))["request"]
ASK = [{"role": "user", "content": "Hello"}]


def test_a_request_survives_the_way() -> None:
    settings = GenerationSettings(17, 0.5, 0.9, 40, 0.05, 1.1, 7, ("\nUser:", "###"), 0.5, -1)
    request = ChatRequest(ASK, "base", settings)
    assert ChatRequest.from_args(json.loads(json.dumps(request.to_args()))) == request
    scored = ChatRequest([], prompt=[3, 5], logprobs=0, echo=True, reads_only=True)
    assert ChatRequest.from_args(json.loads(json.dumps(scored.to_args()))) == scored
    assert ChatRequest.from_args({"messages": ASK}) == ChatRequest(ASK)
    assert ChatRequest.from_args({"messages": ASK, "stop": "###"}).settings.stop == ("###",)


def test_the_settings_of_a_configuration_are_those_of_its_chat() -> None:
    chat = ChatSection(temperature=0.7, top_k=40, seed=3, stop="\nUser:")
    assert GenerationSettings.of(chat, top_k=5, min_p=None) == GenerationSettings(
        temperature=0.7, top_k=5, seed=3, stop=("\nUser:",)
    )
    assert GenerationSettings.of(ChatSection()) == GenerationSettings(), "the defaults are the same"


def test_a_conversation_that_is_too_long_is_refused_by_its_length() -> None:
    ChatRequest(ASK * MESSAGE_LIMIT)
    with pytest.raises(UserError) as refused:
        ChatRequest(ASK * (MESSAGE_LIMIT + 1))
    assert str(refused.value) == (
        "The conversation has 10001 messages; at most 10000 are read. Leave the earliest out."
    )


@cases(("args", "says"), REFUSED)
def test_what_makes_no_sense_is_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ChatRequest.from_args({"messages": ASK, **args})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("messages", "source", "max_new_tokens", "temperature", "top_p", "other"), json_values),
    )
)
def test_arguments_are_read_or_refused_never_anything_else(args: dict[str, Any]) -> None:
    try:
        request = ChatRequest.from_args(args)
    except UserError:
        return
    assert request.messages[-1]["role"] == "user"
