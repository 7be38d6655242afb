from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chat.request import MESSAGE_LIMIT, ChatRequest, GenerationSettings
from core.config.schema import ChatSection
from core.errors import UserError
from tests.cases import cases

ASK = [{"role": "user", "content": "Hello"}]


def test_a_request_survives_the_way() -> None:
    settings = GenerationSettings(17, 0.5, 0.9, 40, 0.05, 1.1, 7, ("\nUser:", "###"))
    request = ChatRequest(ASK, "base", settings)
    assert ChatRequest.from_args(json.loads(json.dumps(request.to_args()))) == request


def test_one_stop_is_a_list_of_one() -> None:
    assert ChatRequest.from_args({"messages": ASK, "stop": "###"}).settings.stop == ("###",)


def test_the_settings_of_a_configuration_are_those_of_its_chat() -> None:
    chat = ChatSection(temperature=0.7, top_k=40, seed=3, stop="\nUser:")
    assert GenerationSettings.of(chat, top_k=5, min_p=None) == GenerationSettings(
        temperature=0.7, top_k=5, seed=3, stop=("\nUser:",)
    )
    assert GenerationSettings.of(ChatSection()) == GenerationSettings(), "the defaults are the same"


def test_what_is_left_out_has_its_default() -> None:
    assert ChatRequest.from_args({"messages": ASK}) == ChatRequest(ASK)


def test_a_conversation_that_is_too_long_is_refused_by_its_length() -> None:
    ChatRequest(ASK * MESSAGE_LIMIT)
    with pytest.raises(UserError) as refused:
        ChatRequest(ASK * (MESSAGE_LIMIT + 1))
    assert str(refused.value) == (
        "The conversation has 10001 messages; at most 10000 are read. Leave the earliest out."
    )


@cases(
    ("args", "says"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": "Hello"}, "at least one message"),
        ({"messages": ["Hello"]}, "role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": 3}]}, "role"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "half a character"),
        ({"messages": [*ASK, {"role": "assistant", "content": "Hi"}]}, "last message"),
        ({"messages": ASK, "source": ""}, "tuned or base"),
        ({"messages": ASK, "source": "a\x1b[2J"}, "tuned or base"),
        ({"messages": ASK, "source": 3}, "tuned or base"),
        ({"messages": ASK, "max_new_tokens": 0}, "max_new_tokens"),
        ({"messages": ASK, "max_new_tokens": 1.5}, "max_new_tokens"),
        ({"messages": ASK, "max_new_tokens": True}, "max_new_tokens"),
        ({"messages": ASK, "temperature": -0.1}, "temperature"),
        ({"messages": ASK, "temperature": float("nan")}, "temperature"),
        ({"messages": ASK, "top_p": 0}, "top_p"),
        ({"messages": ASK, "top_p": "1"}, "top_p"),
        ({"messages": ASK, "top_k": -1}, "top_k"),
        ({"messages": ASK, "min_p": 1}, "min_p"),
        ({"messages": ASK, "repetition_penalty": 0}, "repetition_penalty"),
        ({"messages": ASK, "seed": 1 << 32}, "seed"),
        ({"messages": ASK, "seed": 1.0}, "seed"),
        ({"messages": ASK, "stop": [""]}, "stop"),
        ({"messages": ASK, "stop": ["x"] * 17}, "stop"),
        ({"messages": ASK, "stop": {"a": 1}}, "stop"),
        ({"messages": ASK, "stop": ["\ud83d"]}, "stop"),
    ],
)
def test_what_makes_no_sense_is_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ChatRequest.from_args(args)


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
