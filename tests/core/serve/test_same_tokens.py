"""The same conversation has the same tokens in training, in transformers and for the server, over template families."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.chat.request import ChatRequest
from core.config.schema import ChatSection
from core.data.conversation import Example, Message, make_conversation
from core.runs.control.protocol import Request, decode_request, encode_request
from core.serve.requests import read_chat
from core.template.mask import Masker
from core.template.tokenizer import MaskedRow
from core.worker.data.encode import Encoder
from tests.cases import cases
from tests.core.template.families import DEEPSEEK_R1, FAMILIES, Family, prompt_ids, reference

TOOLS = ({"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}},)
CALL = {"type": "function", "id": "000000000", "function": {"name": "add", "arguments": {"a": 1, "b": [2.5, "é"]}}}
TALK = (
    Message("system", "Be brief."),
    Message("user", "What is 1 + 2?"),
    Message("assistant", "It is 3."),
    Message("user", " And\n\n2 + 2? é"),
    Message("assistant", "It is 4."),
)
WITH_TOOLS = (
    Message("user", "What is 1 + 2?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "3", name="add", tool_call_id="000000000"),
    Message("assistant", "It is 3."),
)


def served_ids(family: Family, messages: list[dict[str, Any]], tools: list[Any]) -> list[int]:
    """The tokens of a conversation as it comes in a request, goes to the engine, and is read there."""
    body = {"model": "m", "messages": messages, **({"tools": tools} if tools else {})}
    asked = read_chat(body, ChatSection()).question
    line = encode_request(Request("1", "generate", asked.to_args()))
    arrived = ChatRequest.from_args(decode_request(line).args)
    assert arrived == asked
    tokenizer = family.tokenizer()
    encoder = Encoder(reference(family), sorted(tokenizer.stop_ids), family.template)
    return encoder.prompt_ids(arrived.messages, arrived.tools)


def trained_ids(family: Family, example: Example) -> list[int]:
    """The tokens before the last answer in a training sequence."""
    (row,) = Masker(family.tokenizer(), supervise="last").mask([example])
    assert isinstance(row, MaskedRow), row.message
    return list(row.input_ids[: row.supervised.index(1)])


@cases("family", FAMILIES)
@cases("first", [0, 1], ids=["with a system prompt", "without"])
def test_a_conversation_is_served_as_it_is_trained_and_asked(family: Family, first: int) -> None:
    turns = TALK[first:]
    messages = [turn.fields() for turn in turns[:-1]]
    served = served_ids(family, messages, [])
    assert served == prompt_ids(family, messages)
    # This family is trained on answers with their reasoning alone.
    last = replace(turns[-1], reasoning="2 + 2.") if family is DEEPSEEK_R1 else turns[-1]
    trained = trained_ids(family, make_conversation((*turns[:-1], last)))
    # A template may begin an answer with text that training learns, such as an empty thought.
    assert trained[: len(served)] == served


@cases("family", [family for family in FAMILIES if family.tools])
def test_a_conversation_with_tools(family: Family) -> None:
    sent = [turn.fields() for turn in WITH_TOOLS[:-1]]
    # As clients send them: arguments are a text.
    sent[1] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**CALL, "function": {"name": "add", "arguments": '{"a": 1, "b": [2.5, "\\u00e9"]}'}}],
    }
    served = served_ids(family, sent, list(TOOLS))
    assert served == prompt_ids(family, [turn.fields() for turn in WITH_TOOLS[:-1]], TOOLS)
    trained = trained_ids(family, make_conversation(WITH_TOOLS, TOOLS))
    assert trained[: len(served)] == served
