"""Objects of OpenAI's API: models, completions, and the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from core.serve.models import ServedModel
from core.serve.queue import End
from core.serve.requests import CompletionRequest
from core.template.tool_call_parser import ToolCall

#: The last line of a stream that has come to its end.
DONE = b"data: [DONE]\n\n"


class Completion:
    """The completion that answers one request: as one object, or as the chunks of a stream.

    Args:
        asked: The request.
    """

    def __init__(self, asked: CompletionRequest) -> None:
        self._is_chat = asked.kind == "chat"
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = asked.model

    def whole(self, text: str, calls: Sequence[ToolCall], end: End) -> dict[str, Any]:
        """The answer as a whole."""
        finish = _finish(end, bool(calls))
        if self._is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
            message["refusal"] = None
            if calls:
                message["tool_calls"] = [_call(call) for call in calls]
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        else:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._head(kind, end.source or None), "choices": [choice], "usage": _usage(end)}

    def opening(self) -> list[bytes]:
        """What a stream begins with."""
        return [self._chunk({"role": "assistant", "content": "", "refusal": None})] if self._is_chat else []

    def piece(self, text: str) -> bytes:
        """A piece of the text."""
        return self._chunk({"content": text}) if self._is_chat else self._text_chunk(text, None, None)

    def calls(self, calls: Sequence[ToolCall]) -> bytes:
        """Calls of tools, each whole."""
        return self._chunk({"tool_calls": [{"index": place, **_call(call)} for place, call in enumerate(calls)]})

    def ending(self, end: End, *, called: bool, with_usage: bool) -> list[bytes]:
        """What a stream ends with."""
        finish, source = _finish(end, called), end.source or None
        chunks = [self._chunk({}, finish, source) if self._is_chat else self._text_chunk("", finish, source)]
        if with_usage:
            kind = "chat.completion.chunk" if self._is_chat else "text_completion"
            chunks.append(_line({**self._head(kind, source), "choices": [], "usage": _usage(end)}))
        return [*chunks, DONE]

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, source: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _line({**self._head("chat.completion.chunk", source), "choices": [choice]})

    def _text_chunk(self, text: str, finish: str | None, source: str | None) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return _line({**self._head("text_completion", source), "choices": [choice]})

    def _head(self, kind: str, source: str | None) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return {**head, "system_fingerprint": source}


def error_line(body: dict[str, Any]) -> bytes:
    """An error in the middle of a stream."""
    return _line(body)


def model_list(models: Sequence[ServedModel]) -> dict[str, Any]:
    """All models."""
    return {"object": "list", "data": [model_object(model) for model in models]}


def model_object(model: ServedModel) -> dict[str, Any]:
    """One model; ``parent`` is the base of an adapter."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "localtune-tui",
        "root": model.id if model.parent is None else model.parent,
        "parent": model.parent,
    }


def _finish(end: End, called: bool) -> str:
    return "tool_calls" if called else "length" if end.finish == "length" else "stop"


def _usage(end: End) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.tokens,
        "total_tokens": end.prompt_tokens + end.tokens,
    }


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _line(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, allow_nan=False).encode("ascii") + b"\n\n"
