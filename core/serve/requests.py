"""Requests for answers: the bodies of ``/v1/chat/completions`` and ``/v1/completions``, as questions to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.chat.json_schema import grammar_of
from core.chat.request import MAX_NEW_TOKENS_LIMIT, ChatRequest, GenerationSettings, SettingError
from core.config.schema import ChatSection
from core.data.conversation import RowError
from core.data.formats.turns import read_messages, read_tools
from core.errors import UserError
from core.serve.errors import ApiError
from core.serve.fields import Fields

#: Longest answer where the request names no limit; the model's context cuts it as well.
LONGEST_ANSWER = 4096
#: The same where a text is gone on with, as in OpenAI's API.
LONGEST_COMPLETION = 16


@dataclass(frozen=True)
class CompletionRequest:
    """A request that has been read."""

    kind: Literal["chat", "text"]
    model: str
    question: ChatRequest
    stream: bool
    include_usage: bool
    """Whether a stream ends with the number of tokens."""
    tools: frozenset[str] = frozenset()
    """Names of the tools that may be called."""


def model_name(body: Mapping[str, Any]) -> str:
    """The model that a request names."""
    return Fields(body).text("model")


def read_chat(body: Mapping[str, Any], defaults: ChatSection) -> CompletionRequest:
    """Read a request for the next turn of a conversation.

    Messages and tools are read as those of a dataset are, so that they become the same tokens.

    Args:
        body: The body.
        defaults: The settings that the request leaves out.

    Raises:
        ApiError: If it makes no sense, or asks for what is not offered.
    """
    fields = Fields(body)
    _refuse_common(fields)
    for name in ("functions", "function_call"):
        if fields.has(name):
            raise fields.refuse(name, "pass tools instead.")
    if fields.flag("logprobs") or fields.raw("top_logprobs"):
        raise fields.refuse("logprobs", "probabilities are not told.")
    for name in ("audio", "web_search_options"):
        if fields.has(name):
            raise fields.refuse(name, "only text is read and written.")
    turns = fields.items("messages")
    if not turns:
        raise fields.wrong("messages", "a list of at least one message")
    tools: tuple[Mapping[str, Any], ...] = ()
    try:
        messages = [message.fields() for message in read_messages(turns, ("role", "content"))]
        if _wants_tools(fields):
            tools = read_tools({"tools": fields.items("tools")})
    except RowError as error:
        raise ApiError(400, error.message, param="messages") from error
    schema = _schema(fields)
    if schema is not None and tools:
        raise fields.refuse("response_format", "with tools, the model chooses between a call and an answer.")
    limit = "max_completion_tokens" if fields.has("max_completion_tokens") else "max_tokens"
    settings = _settings(fields, defaults, limit, LONGEST_ANSWER)
    question = _question(messages=messages, settings=settings, tools=list(tools), json_schema=schema)
    names = frozenset(str(tool["function"]["name"]) for tool in tools)
    return CompletionRequest("chat", fields.text("model"), question, *_stream(fields), tools=names)


def read_completion(body: Mapping[str, Any], defaults: ChatSection) -> CompletionRequest:
    """Read a request to go on with a text.

    Raises:
        ApiError: If it makes no sense, or asks for what is not offered.
    """
    fields = Fields(body)
    _refuse_common(fields)
    if fields.raw("logprobs") not in (None, False, 0):
        raise fields.refuse("logprobs", "probabilities are not told.")
    if fields.flag("echo"):
        raise fields.refuse("echo", "the answer has only what the model adds.")
    if fields.raw("suffix"):
        raise fields.refuse("suffix", "a text is only gone on with at its end.")
    if fields.raw("best_of") not in (None, 1):
        raise fields.refuse("best_of", "there is one answer to a request.")
    prompt = fields.raw("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise fields.wrong("prompt", "one text that is not empty; tokens and lists of several texts are not read")
    settings = _settings(fields, defaults, "max_tokens", LONGEST_COMPLETION)
    question = _question(messages=[], prompt=prompt, settings=settings, json_schema=_schema(fields))
    return CompletionRequest("text", fields.text("model"), question, *_stream(fields))


def _question(**parts: Any) -> ChatRequest:
    try:
        return ChatRequest(**parts)
    except UserError as error:
        raise ApiError(400, str(error), param="prompt" if "prompt" in parts else "messages") from error


def _refuse_common(fields: Fields) -> None:
    """Refuse what would change the answer and is not offered; fields that would not are left alone."""
    if fields.raw("n") not in (None, 1):
        raise fields.refuse("n", "there is one answer to a request.")
    for name in ("frequency_penalty", "presence_penalty"):
        if fields.number(name):
            raise fields.refuse(name, "use repetition_penalty.")
    if fields.raw("logit_bias"):
        raise fields.refuse("logit_bias", "the likelihood of tokens is the model's own.")


def _settings(fields: Fields, defaults: ChatSection, limit: str, longest: int) -> GenerationSettings:
    """The settings of an answer.

    Args:
        fields: The request.
        defaults: What it leaves out.
        limit: The field with the longest answer.
        longest: The longest answer where it is absent.
    """
    given = fields.whole(limit)
    if given is not None and given < 1:
        raise fields.wrong(limit, "at least 1")
    seed = fields.whole("seed")
    top_k = fields.whole("top_k")
    try:
        return GenerationSettings.of(
            defaults,
            max_new_tokens=min(longest if given is None else given, MAX_NEW_TOKENS_LIMIT),
            temperature=fields.number("temperature"),
            top_p=fields.number("top_p"),
            # Other servers write -1 for none.
            top_k=None if top_k is None else max(top_k, 0),
            min_p=fields.number("min_p"),
            repetition_penalty=fields.number("repetition_penalty"),
            seed=None if seed is None else seed % (1 << 32),
            stop=_stops(fields),
        )
    except SettingError as error:
        # Its hint is about the configuration.
        raise ApiError(400, error.message, param=error.name) from error


def _stops(fields: Fields) -> Any:
    value = fields.raw("stop")
    if isinstance(value, list):
        # Some clients send empty texts for none.
        return tuple(text for text in value if text != "") or None
    return value or None


def _stream(fields: Fields) -> tuple[bool, bool]:
    stream = fields.flag("stream")
    return stream, stream and fields.group("stream_options").flag("include_usage")


def _wants_tools(fields: Fields) -> bool:
    choice = fields.raw("tool_choice")
    if choice in (None, "auto"):
        return fields.has("tools")
    if choice == "none":
        return False
    raise fields.refuse("tool_choice", "the model chooses, so only 'auto' and 'none' can be asked for.")


def _schema(fields: Fields) -> str | None:
    """The JSON Schema that the answer has to follow, as JSON; None for any text."""
    group = fields.group("response_format")
    kind = group.raw("type")
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return '{"type":"object"}'
    if kind != "json_schema":
        raise group.wrong("type", "text, json_object or json_schema")
    schema = group.group("json_schema").raw("schema")
    if not isinstance(schema, (dict, bool)):
        raise group.group("json_schema").wrong("schema", "a JSON Schema")
    text = json.dumps(schema, ensure_ascii=False)
    try:
        grammar_of(text)
    except UserError as error:
        raise ApiError(
            400, str(error), param="response_format.json_schema.schema", code="invalid_json_schema"
        ) from error
    return text
