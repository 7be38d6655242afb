"""OpenAI's Responses API: bodies of ``/v1/responses`` as requests of a chat, and answers as its objects and events.

See https://platform.openai.com/docs/api-reference/responses. Nothing is stored.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, StrictStr

from core.config.schema import ChatSection
from core.data.conversation import RowError, read_messages
from core.serve.asgi import ApiError, event_line
from core.serve.logprobs import Logprobs
from core.serve.queue import End
from core.serve.requests import CompletionRequest, RequestBody, invalid, not_offered, read_chat, read_fields, unless
from core.template.tool_call_parser import ToolCall

#: Fields of a chat, by their beginnings, and their names here.
_NAMES = {"response_format.json_schema": "text.format", "response_format": "text.format", "messages": "input"}
_NAMES |= {"max_tokens": "max_output_tokens"}
#: Fields of the same name.
_SHARED = (*RequestBody.model_fields, "tool_choice", "parallel_tool_calls", "top_logprobs")
_Stored: TypeAlias = Annotated[Any, unless(bool, "nothing is stored; send the whole conversation as input.")]


class _Text(BaseModel):
    format: dict[str, Any] | None = None


class _Tool(BaseModel):
    type: Annotated[Any, unless(lambda kind: kind != "function", "only tools of type function are called.")]
    name: StrictStr


class _ResponseBody(RequestBody):
    """Body of ``/v1/responses``."""

    input: Any = None
    instructions: StrictStr | None = None
    text: _Text | None = None
    tools: list[_Tool] | None = None
    include: list[Any] | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: _Stored = None
    conversation: _Stored = None
    prompt: _Stored = None
    background: Annotated[Any, unless(bool, "the request is open until its answer is complete.")] = None
    n: Annotated[Any, unless(lambda n: n not in (None, 1), "a response has one answer.")] = None
    max_tokens: Annotated[Any, unless(bool, "use max_output_tokens.")] = None
    response_format: Annotated[Any, unless(bool, "use text.format.")] = None


def read_response(body: Mapping[str, Any], defaults: ChatSection) -> CompletionRequest:
    """Read a request for a response, as one of a chat.

    Raises:
        ApiError: If it is invalid, or asks for something that is not offered.
    """
    asked = read_fields(_ResponseBody, body)
    form = (asked.text.format if asked.text else None) or {"type": "text"}
    # As they were sent: the order of keys shows in the prompt.
    functions = [{key: tool[key] for key in tool if key != "type"} for tool in body.get("tools") or ()]
    chat = {
        **{name: body.get(name) for name in _SHARED},
        "messages": _messages(asked.input, asked.instructions),
        "max_tokens": body.get("max_output_tokens"),
        "response_format": {**form, "json_schema": form},
        "tools": [{"function": function} for function in functions] or None,
        "logprobs": bool(body.get("top_logprobs")) or "message.output_text.logprobs" in (asked.include or ()),
    }
    try:
        request = read_chat(chat, defaults)
    except ApiError as error:
        raise _renamed(error) from error
    repeated = {
        **{name: body.get(name) for name in ("instructions", "max_output_tokens", "metadata")},
        "parallel_tool_calls": not request.one_call,
        "temperature": request.question.settings.temperature,
        "text": {"format": form},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": request.question.settings.top_p,
    }
    return replace(request, kind="response", repeated=repeated)


def _renamed(error: ApiError) -> ApiError:
    """An error of a chat, with the name of the field here."""
    param = error.param or ""
    name = next((name for name in _NAMES if param.startswith(name)), "")
    own = _NAMES.get(name, "") + param.removeprefix(name)
    message = own + error.message.removeprefix(param) if error.message.startswith(param) else error.message
    return ApiError(error.status, message, param=own or None, code=error.code)


def _messages(given: Any, instructions: str | None) -> list[dict[str, Any]]:
    """Messages of a chat. A call belongs to the assistant's message before it."""
    if not given or not isinstance(given, (str, list)):
        raise invalid("input", "a text, or a list of at least one item")
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for number, item in enumerate([{"role": "user", "content": given}] if isinstance(given, str) else given):
        try:
            (message,) = read_messages([_turn(item, f"input.{number}")], ("role", "content"), number + 1)
        except RowError as error:
            raise ApiError(400, error.message, param="input") from error
        if message.tool_calls and messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).extend(message.tool_calls)
        else:
            messages.append(message.fields())
    return messages


def _turn(item: Any, where: str) -> Any:
    """An item of the input as a message of a chat."""
    kind = item.get("type") or "message" if isinstance(item, dict) else "message"
    if kind == "function_call":
        return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": item}]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    if kind != "message":
        raise not_offered(f"{where}.type", "only message, function_call and function_call_output are read.")
    return item


class ModelResponse:
    """The response to one request, with the methods of :class:`core.serve.response.Completion`.

    Args:
        asked: The request.
    """

    def __init__(self, asked: CompletionRequest) -> None:
        self._head = {"id": _new_id("resp"), "object": "response", "created_at": int(time.time()), "model": asked.model}
        self._head |= {"error": None, "store": False, **asked.repeated}
        self._scores = Logprobs("chat")
        self._events = 0
        #: Complete items.
        self._output: list[dict[str, Any]] = []
        #: The message that is being written; empty before its first text.
        self._message: dict[str, Any] = {}
        self._part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}

    def whole(self, _: Sequence[dict[str, Any]], ends: Sequence[End]) -> dict[str, Any]:
        """The response."""
        return self._response(ends[0])

    def choice(self, text: str, calls: Sequence[ToolCall], scores: Any, end: End) -> dict[str, Any]:
        """Take an answer as a whole."""
        self.piece(0, text, scores)
        self.calls(0, calls)
        self.ending(end, called=bool(calls))
        return {}

    def opening(self, _: int) -> list[bytes]:
        """First events of a stream."""
        return [self._event(kind, response=self._response(None)) for kind in ("created", "in_progress")]

    def piece(self, _: int, text: str, scores: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """A piece of the text; the first one begins the message."""
        taken = self._scores.take(scores)["content"]
        begun = self._begin() if text and not self._message else b""
        self._part["text"] += text
        self._part["logprobs"] += taken
        if not self._message:
            return b""
        logprobs = self._part["logprobs"] if begun else taken
        return begun + self._in_part("output_text.delta", delta=text, logprobs=logprobs)

    def calls(self, _: int, calls: Sequence[ToolCall]) -> bytes:
        """Calls of tools, each whole, after the message."""
        events = [self._end("completed")] if calls and self._message else []
        for call in calls:
            done = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
            item = {"id": _new_id("fc"), "type": "function_call", "call_id": call.id, **done, "status": "completed"}
            place = {"item_id": item["id"], "output_index": len(self._output)}
            events += [
                self._add({**item, "arguments": "", "status": "in_progress"}),
                self._event("function_call_arguments.delta", **place, delta=done["arguments"]),
                self._event("function_call_arguments.done", **place, **done),
                self._complete(item),
            ]
        return b"".join(events)

    def ending(self, end: End, *, called: bool) -> bytes:
        """Last events of an answer."""
        if called:
            return b""
        begun = b"" if self._message else self._begin()
        return begun + self._end("incomplete" if end.finish == "length" else "completed")

    def closing(self, ends: Sequence[End]) -> list[bytes]:
        """The last event of a stream."""
        response = self._response(ends[0])
        return [self._event(response["status"], response=response)]

    def failure(self, error: ApiError) -> bytes:
        """The last event of a stream that is broken off; ``error`` is for the clients, which raise it."""
        told = error.body["error"]
        return event_line({**told, "type": "error", "sequence_number": self._events, "error": told}, "error")

    def _response(self, end: End | None) -> dict[str, Any]:
        """The response so far, or at its end: it has the status of its last item."""
        status = "in_progress" if end is None else self._output[-1]["status"]
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        told = {**self._head, "status": status, "incomplete_details": reason, "output": self._output, "usage": None}
        if end is None:
            return told
        read, written = end.prompt_tokens, end.tokens
        usage: dict[str, Any] = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        usage["input_tokens_details"] = {"cached_tokens": 0, "cache_write_tokens": 0}
        usage["output_tokens_details"] = {"reasoning_tokens": 0}
        return {**told, "usage": usage, "system_fingerprint": end.source or None}

    def _begin(self) -> bytes:
        self._message = {"id": _new_id("msg"), "type": "message", "role": "assistant", "content": []}
        added = self._add({**self._message, "status": "in_progress"})
        return added + self._in_part("content_part.added", part={**self._part, "logprobs": []})

    def _end(self, status: str) -> bytes:
        text = self._in_part("output_text.done", text=self._part["text"], logprobs=self._part["logprobs"])
        part = self._in_part("content_part.done", part=self._part)
        return text + part + self._complete({**self._message, "status": status, "content": [self._part]})

    def _add(self, item: dict[str, Any]) -> bytes:
        return self._event("output_item.added", output_index=len(self._output), item=item)

    def _complete(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        return self._event("output_item.done", output_index=len(self._output) - 1, item=item)

    def _in_part(self, kind: str, **fields: Any) -> bytes:
        """An event of the message's text."""
        place = {"item_id": self._message["id"], "output_index": len(self._output), "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._events += 1
        name = f"response.{kind}"
        return event_line({"type": name, "sequence_number": self._events - 1, **fields}, name)


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
