"""Requests for answers: the bodies of ``/v1/chat/completions`` and ``/v1/completions``, as questions to a model.

Those of ``/v1/responses`` are in :mod:`core.serve.responses`.

The fields are OpenAI's, https://platform.openai.com/docs/api-reference, and ``top_k``, ``min_p`` and
``repetition_penalty`` of vLLM and llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, Field, Strict, StrictBool, StrictInt, StrictStr, ValidationError
from pydantic_core import PydanticCustomError

from core.chat.request import MAX_NEW_TOKENS_LIMIT, ChatRequest, GenerationSettings, SettingError, grammar_of
from core.config.schema import ChatSection
from core.data.conversation import RowError, read_messages, read_tools
from core.errors import UserError
from core.serve.asgi import ApiError
from core.template.tool_call_grammar import LENIENT, parameters_of

#: Tokens of the longest answer where the request names no limit; the model's context cuts it as well.
LONGEST_ANSWER = 4096
#: The same where a text is continued, as in OpenAI's API.
LONGEST_COMPLETION = 16
#: Most answers to one request: its prompts, each ``n`` times.
ANSWER_LIMIT = 128
#: The valid value by pydantic's type of error, for the sentence "NAME must be …".
_WANTED = {
    **dict.fromkeys(("missing", "string_type", "string_unicode"), "a text"),
    "bool_type": "true or false",
    "int_type": "a whole number",
    "greater_than_equal": "at least 1",
    **dict.fromkeys(("float_type", "finite_number"), "a number"),
    **dict.fromkeys(("model_type", "dict_type"), "an object"),
    "list_type": "a list",
}


def unless(is_asked_for: Callable[[Any], bool], why: str) -> AfterValidator:
    """Validator that refuses a value which asks for an unsupported feature; ``why`` ends the message."""

    def check(value: Any) -> Any:
        if is_asked_for(value):
            raise PydanticCustomError("not_offered", "{why}", {"why": why})
        return value

    return AfterValidator(check)


_Number: TypeAlias = Annotated[float, Strict(), Field(allow_inf_nan=False)] | None
_Limit: TypeAlias = Annotated[StrictInt, Field(ge=1)] | None
_TextOnly: TypeAlias = Annotated[Any, unless(lambda value: value is not None, "only text is read and written.")]
_Functions: TypeAlias = Annotated[Any, unless(lambda value: value is not None, "pass tools instead.")]
_Grammar: TypeAlias = Annotated[
    Any,
    unless(
        lambda value: value is not None,
        "use a JSON Schema in response_format, or in text.format of a response: enum has choices, pattern a regular "
        "expression.",
    ),
]


class _StreamOptions(BaseModel):
    include_usage: StrictBool | None = None


class _JsonSchema(BaseModel):
    schema_: Any = Field(None, alias="schema")
    strict: StrictBool | None = None


class _ResponseFormat(BaseModel):
    type: Any = None
    json_schema: _JsonSchema | None = None


class RequestBody(BaseModel):
    """Fields of all kinds of requests. Fields that would change no answer are left alone."""

    model: StrictStr
    n: _Limit = None
    frequency_penalty: _Number = None
    presence_penalty: _Number = None
    logit_bias: dict[str, Any] | None = None
    max_tokens: _Limit = None
    temperature: _Number = None
    top_p: _Number = None
    min_p: _Number = None
    repetition_penalty: _Number = None
    top_k: StrictInt | None = None
    seed: StrictInt | None = None
    stop: Any = None
    stream: StrictBool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None
    # Names of vLLM and llama.cpp.
    guided_json: _Grammar = None
    guided_regex: _Grammar = None
    guided_choice: _Grammar = None
    guided_grammar: _Grammar = None
    structured_outputs: _Grammar = None
    structural_tag: _Grammar = None
    grammar: _Grammar = None
    json_schema: _Grammar = None


class _ChatBody(RequestBody):
    """Body of ``/v1/chat/completions``."""

    messages: list[Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: StrictBool | None = None
    # Names of vLLM.
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None
    max_completion_tokens: _Limit = None
    functions: _Functions = None
    function_call: _Functions = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None
    audio: _TextOnly = None
    web_search_options: _TextOnly = None


class _TextBody(RequestBody):
    """Body of ``/v1/completions``."""

    prompt: Any = None
    max_tokens: StrictInt | None = None
    logprobs: StrictInt | None = None
    echo: StrictBool | None = None
    suffix: Annotated[Any, unless(bool, "a text is only continued at its end.")] = None
    best_of: Annotated[Any, unless(lambda n: n not in (None, 1), "all answers are returned; use n.")] = None


class _Named(BaseModel):
    model: StrictStr


@dataclass(frozen=True)
class CompletionRequest:
    """A parsed request."""

    kind: Literal["chat", "text", "response"]
    model: str
    question: ChatRequest
    stream: bool
    include_usage: bool
    """A stream ends with the number of tokens."""
    tools: frozenset[str] = frozenset()
    """Names of the tools that may be called."""
    one_call: bool = False
    """No more than one of them, once."""
    n: int = 1
    """Answers to each question."""
    others: tuple[ChatRequest, ...] = ()
    """Further questions."""
    repeated: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a response repeats."""

    @property
    def questions(self) -> list[ChatRequest]:
        """The question of each answer. Answers to one question differ by their seeds."""
        return [_draw(question, number) for question in (self.question, *self.others) for number in range(self.n)]

    @property
    def count(self) -> int:
        """Number of answers."""
        return (1 + len(self.others)) * self.n


def model_name(body: Mapping[str, Any]) -> str:
    """The model that a request names."""
    return read_fields(_Named, body).model


def read_chat(body: Mapping[str, Any], defaults: ChatSection) -> CompletionRequest:
    """Read a request for the next turn of a conversation.

    Messages and tools are read as in a dataset, so that they become the same tokens.

    Args:
        body: The body.
        defaults: The settings that the request leaves out.

    Raises:
        ApiError: If it is invalid, or asks for something that is not offered.
    """
    asked = read_fields(_ChatBody, body)
    if not asked.messages:
        raise invalid("messages", "a list of at least one message")
    tools: tuple[Mapping[str, Any], ...] = ()
    try:
        messages = [message.fields() for message in read_messages(asked.messages, ("role", "content"))]
        if asked.tools is not None and asked.tool_choice != "none":
            tools = read_tools({"tools": asked.tools})
    except RowError as error:
        raise ApiError(400, error.message, param="messages") from error
    schema = _schema(asked.response_format)
    if schema is not None and tools:
        raise not_offered("response_format", "with tools, the model chooses between a call and an answer.")
    _check_continuation(asked, messages[-1]["role"] == "assistant")
    forced = _forced_tools(asked.tool_choice, tools)
    one_call = asked.parallel_tool_calls is False or isinstance(asked.tool_choice, dict)
    longest = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    settings = _settings(asked, defaults, LONGEST_ANSWER if longest is None else longest)
    if asked.top_logprobs and not asked.logprobs:
        raise invalid("top_logprobs", "given with logprobs")
    question = _question(
        messages=messages,
        settings=settings,
        tools=list(tools),
        json_schema=schema,
        forced_tools=forced,
        several_calls=not one_call,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
    names = frozenset(str(tool["function"]["name"]) for tool in tools)
    return CompletionRequest(
        "chat", asked.model, question, *_stream(asked), tools=names, one_call=one_call, n=_answers(asked)
    )


def read_completion(body: Mapping[str, Any], defaults: ChatSection) -> CompletionRequest:
    """Read a request to continue a text.

    Raises:
        ApiError: If it is invalid, or asks for something that is not offered.
    """
    asked = read_fields(_TextBody, body)
    echo, longest = bool(asked.echo), LONGEST_COMPLETION if asked.max_tokens is None else asked.max_tokens
    if longest < (0 if echo else 1):
        raise invalid("max_tokens", "at least 1, or 0 with echo")
    settings = _settings(asked, defaults, max(longest, 1))
    how = {"settings": settings, "json_schema": _schema(asked.response_format), "logprobs": asked.logprobs}
    prompts = _prompts(asked.prompt)
    n = _answers(asked, len(prompts))
    question, *others = (
        _question(messages=[], prompt=prompt, echo=echo, reads_only=not longest, **how) for prompt in prompts
    )
    return CompletionRequest("text", asked.model, question, *_stream(asked), n=n, others=tuple(others))


def _prompts(value: Any) -> list[str | list[int]]:
    """The prompts of a request: a text, its tokens, or a list of either."""
    is_one = isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, int) for each in value))
    prompts = [value] if is_one else value
    if not isinstance(prompts, list) or not all(isinstance(each, (str, list)) and each for each in prompts):
        raise invalid("prompt", "a text, a list of tokens, or a list of either, and not be empty")
    return prompts


def _answers(asked: RequestBody, prompts: int = 1) -> int:
    """Number of answers to each of a request's prompts."""
    n = 1 if asked.n is None else asked.n
    if n * prompts > ANSWER_LIMIT:
        name = "n" if n > 1 else "prompt"
        raise ApiError(400, f"A request has at most {ANSWER_LIMIT} answers, and this one {n * prompts}.", param=name)
    return n


def _draw(question: ChatRequest, number: int) -> ChatRequest:
    """A question with the seed of one of its answers, by its number."""
    seed = question.settings.seed
    if seed is None or not number:
        return question
    return replace(question, settings=replace(question.settings, seed=(seed + number) % (1 << 32)))


_AnyBody = TypeVar("_AnyBody", bound=BaseModel)


def read_fields(kind: type[_AnyBody], body: Mapping[str, Any]) -> _AnyBody:
    """A body's fields; the first invalid field becomes an error of OpenAI's form.

    Raises:
        ApiError: If a field is invalid, or asks for something that is not offered.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "not_offered":
            raise not_offered(name, first["msg"]) from None
        raise invalid(name, _WANTED.get(first["type"], first["msg"])) from None


def invalid(name: str, wanted: str) -> ApiError:
    """The error for a field with an invalid value."""
    return ApiError(400, f"{name} must be {wanted}.", param=name)


def not_offered(name: str, why: str) -> ApiError:
    """The error for a field that asks for an unsupported feature."""
    return ApiError(400, f"{name} is not offered: {why}", param=name, code="unsupported_parameter")


def _question(**parts: Any) -> ChatRequest:
    try:
        return ChatRequest(**parts)
    except SettingError as error:
        raise ApiError(400, error.message, param="logprobs" if "prompt" in parts else "top_logprobs") from error
    except UserError as error:
        raise ApiError(400, str(error), param="prompt" if "prompt" in parts else "messages") from error


def _settings(asked: RequestBody, defaults: ChatSection, longest: int) -> GenerationSettings:
    """The settings of an answer.

    Args:
        asked: The request.
        defaults: The settings that it leaves out.
        longest: Most tokens of the answer.
    """
    try:
        return GenerationSettings.of(
            defaults,
            max_new_tokens=min(longest, MAX_NEW_TOKENS_LIMIT),
            temperature=asked.temperature,
            top_p=asked.top_p,
            # Other servers write -1 for none.
            top_k=None if asked.top_k is None else max(asked.top_k, 0),
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            logit_bias=asked.logit_bias,
            seed=None if asked.seed is None else asked.seed % (1 << 32),
            stop=_stops(asked.stop),
        )
    except SettingError as error:
        # Its hint is about the configuration.
        raise ApiError(400, error.message, param=error.name) from error


def _stops(value: Any) -> Any:
    if isinstance(value, list):
        # Some clients send empty texts for none.
        return tuple(text for text in value if text != "") or None
    return value or None


def _stream(asked: RequestBody) -> tuple[bool, bool]:
    stream = bool(asked.stream)
    return stream, stream and asked.stream_options is not None and bool(asked.stream_options.include_usage)


def _schema(asked: _ResponseFormat | None) -> str | None:
    """The JSON Schema that the answer has to follow, as JSON; None for any text."""
    if asked is None or asked.type in (None, "text"):
        return None
    if asked.type == "json_object":
        return '{"type":"object"}'
    if asked.type != "json_schema":
        raise invalid("response_format.type", "text, json_object or json_schema")
    place = "response_format.json_schema.schema"
    asked_schema = _JsonSchema() if asked.json_schema is None else asked.json_schema
    if not isinstance(asked_schema.schema_, (dict, bool)):
        raise invalid(place, "a JSON Schema")
    schema = asked_schema.schema_
    if isinstance(schema, dict) and asked_schema.strict is False:
        schema = {**schema, **LENIENT}
    text = json.dumps(schema, ensure_ascii=False)
    _check_schema(text, place)
    return text


def _check_schema(schema: str, place: str) -> None:
    try:
        grammar_of(schema)
    except UserError as error:
        raise ApiError(400, str(error), param=place, code="invalid_json_schema") from error


def _check_continuation(asked: _ChatBody, is_begun: bool) -> None:
    """Refuse a prompt other than that for the next answer, or for the rest of an answer at the end."""
    if asked.add_generation_prompt is is_begun:
        raise not_offered("add_generation_prompt", "an answer at the end is continued, and only that.")
    if asked.continue_final_message not in (None, is_begun):
        raise not_offered("continue_final_message", "an answer at the end is continued, and only that.")


def _forced_tools(choice: Any, tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the tools, of which the answer has to be a call; empty if the model chooses."""
    if choice in (None, "auto", "none"):
        return []
    functions = {str(tool["function"]["name"]): tool["function"] for tool in tools}
    named = choice.get("function", choice) if isinstance(choice, dict) else {}
    name = named.get("name") if isinstance(named, dict) else None
    if choice != "required" and not isinstance(name, str):
        raise invalid("tool_choice", 'auto, none, required or {"type": "function", "function": {"name": NAME}}')
    if not functions or (choice != "required" and name not in functions):
        raise invalid("tool_choice", "a choice among tools, which lacks it")
    forced = list(functions) if choice == "required" else [str(name)]
    for each in forced:
        schema = parameters_of(functions[each])
        _check_schema(json.dumps(schema, ensure_ascii=False), "tools")
    return forced
