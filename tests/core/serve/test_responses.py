"""The Responses API as OpenAI's own client sees it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from core.config.schema import ChatSection
from core.serve.requests import read_chat
from core.serve.responses import read_response
from tests.cases import cases
from tests.core.serve.conftest import RunningServer

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": None}
TOOLS = [{"type": "function", **FUNCTION}]


class Person(BaseModel):
    name: str


def streamed(played: RunningServer, **asked: Any) -> tuple[list[Any], Any]:
    """The events of a stream, and the response that the client makes of them."""
    with played.client().responses.stream(model="run-1", **asked) as stream:
        events = list(stream)
        return events, stream.get_final_response()


@cases(
    ("said", "kinds"),
    [
        ("Hello.", ["message"]),
        ("", ["message"]),
        (f"I add. {CALL}{CALL}", ["message", *2 * ["function_call"]]),
        (CALL, ["function_call"]),
    ],
)
def test_a_response_is_the_same_whole_and_streamed(played: RunningServer, said: str, kinds: list[str]) -> None:
    asked = {"input": f"say {said}", "tools": TOOLS, "metadata": {"a": "b"}, "instructions": "Be brief."}
    whole = played.client().responses.create(model="run-1", **asked)
    Response.model_validate(whole.model_dump(), strict=True)
    assert [item.type for item in whole.output] == kinds
    assert (whole.status, whole.error, whole.instructions) == ("completed", None, "Be brief.")
    assert (whole.metadata, whole.tools[0].name) == ({"a": "b"}, "add")
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events, final = streamed(played, **asked)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text.strip() == whole.output_text
    assert [item.type for item in final.output] == kinds
    assert all(json.loads(item.arguments) == {"a": 1} for item in final.output if item.type == "function_call")
    assert final.usage == whole.usage
    for event in played.client().responses.create(model="run-1", stream=True, **asked):
        type(event).model_validate(event.model_dump())


def test_the_events_of_a_stream_come_in_order(played: RunningServer) -> None:
    events, _ = streamed(played, input=f"say I add.\n{CALL}", tools=TOOLS)
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "completed",
    ]
    places = [event.output_index for event in events if event.type == "response.output_item.done"]
    assert places == [0, 1]


def test_answers_are_parsed_and_have_log_probabilities(played: RunningServer) -> None:
    responses = played.client().responses
    asked = {"model": "run-1", "input": 'say {"name": "Jo"}'}
    assert responses.parse(text_format=Person, **asked).output_parsed == Person(name="Jo")
    (part,) = responses.create(top_logprobs=1, **asked).output[0].content
    assert "".join(token.token for token in part.logprobs) == part.text
    assert part.logprobs[0].top_logprobs[0].token == "other"
    events, _ = streamed(played, input=asked["input"], top_logprobs=1)
    tokens = [each.token for event in events if event.type.endswith("text.delta") for each in event.logprobs]
    assert tokens == [token.token for token in part.logprobs]


def test_a_conversation_is_that_of_a_chat() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": "I add.", "tool_calls": [call, {**call, "id": "call_2"}]},
            {"role": "tool", "content": "2", "tool_call_id": "call_1"},
            {"role": "tool", "content": "3", "tool_call_id": "call_2"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "max_completion_tokens": 7,
        "seed": 3,
    }
    item = {"type": "function_call", "id": "fc_1", "name": "add", "arguments": '{"a": 1}', "status": "completed"}
    response = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Add."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I add."}]},
            {**item, "call_id": "call_1"},
            {**item, "call_id": "call_2"},
            {"type": "function_call_output", "call_id": "call_1", "output": "2"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "3"}]},
        ],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "name": "add"},
        "max_output_tokens": 7,
        "seed": 3,
        "store": True,
        "user": "me",
        "reasoning": {"effort": "low"},
        "include": ["reasoning.encrypted_content"],
    }
    found, wanted = (
        read({"model": "m", **body}, ChatSection()).question
        for read, body in ((read_response, response), (read_chat, chat))
    )
    assert found == wanted
    assert json.dumps(found.tools) == json.dumps(wanted.tools), "keys keep their order"


def test_errors_and_responses_of_the_past_are_told(played: RunningServer) -> None:
    responses = played.client().responses
    with pytest.raises(openai.NotFoundError, match="Responses are not stored"):
        responses.retrieve("resp_1")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"too long. Shorten it"):
            responses.create(model="run-1", input="refuse", stream=stream)


def test_a_stream_that_is_broken_off_raises(serve: Callable[..., RunningServer]) -> None:
    server = serve()
    stream = server.client().responses.create(model="tiny", input="hang", stream=True)
    next(stream)
    server.process.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="The server is ending"):
        list(stream)
