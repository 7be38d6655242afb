"""Responses in OpenAI's form: completions as a whole or as a stream of events, and models."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from core.serve.asgi import MEANS_NOTHING, Receive, Scope, Send, send_json
from core.serve.models import ServedModel
from core.serve.queue import End, Event, Failure, Piece, QueuedAnswer, RequestQueue
from core.serve.requests import CompletionRequest
from core.template.tool_call_parser import ToolCall, parse_tool_calls, tool_call_start

#: The last line of a complete stream.
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
        """First chunks of a stream."""
        return [self._chunk({"role": "assistant", "content": "", "refusal": None})] if self._is_chat else []

    def piece(self, text: str) -> bytes:
        """A piece of the text."""
        return self._chunk({"content": text}) if self._is_chat else self._text_chunk(text, None, None)

    def calls(self, calls: Sequence[ToolCall]) -> bytes:
        """Calls of tools, each whole."""
        return self._chunk({"tool_calls": [{"index": place, **_call(call)} for place, call in enumerate(calls)]})

    def ending(self, end: End, *, called: bool, with_usage: bool) -> list[bytes]:
        """Last chunks of a stream."""
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
    """A model as JSON; ``parent`` is the base of an adapter."""
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


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


#: A comment in a stream of events, which programs skip.
_COMMENT = b":\n\n"


class Writer(Protocol):
    """Writes lines of a stream."""

    def __call__(self, *lines: bytes) -> Awaitable[None]:
        """Write them, as soon as the client has read the lines before."""


class ClientGone(Exception):  # noqa: N818 - nothing is wrong with that
    """Raised when the client has closed the connection."""


class CompletionResponse:
    """An ASGI application that answers one request, and cancels the answer when the client goes.

    Args:
        asked: The request.
        answer: Its answer.
        queue: Its queue.
    """

    def __init__(self, asked: CompletionRequest, answer: QueuedAnswer, queue: RequestQueue) -> None:
        self._asked = asked
        self._answer = answer
        self._queue = queue
        self._completion = Completion(asked)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            # The status depends on the first event: an answer that cannot begin has no stream.
            first = await self._next(gone)
            if isinstance(first, Failure):
                await send_json(send, first.error.status, first.error.body, first.error.headers)
            elif self._asked.stream:
                scope["state"][MEANS_NOTHING] = _COMMENT
                await self._stream(first, gone, send)
            else:
                await self._whole(first, gone, send)
        except ClientGone:
            return
        finally:
            gone.cancel()
            self._queue.cancel(self._answer)

    async def _next(self, gone: asyncio.Future[None]) -> Event:
        """The next event.

        Raises:
            ClientGone: If the client goes before it comes.
        """
        if self._answer.events.empty():
            coming = asyncio.ensure_future(self._answer.events.get())
            try:
                await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    return coming.result()
            finally:
                coming.cancel()
            raise ClientGone
        if gone.done():
            raise ClientGone
        return self._answer.events.get_nowait()

    async def _whole(self, first: Event, gone: asyncio.Future[None], send: Send) -> None:
        pieces: list[str] = []
        event = first
        while isinstance(event, Piece):
            pieces.append(event.text)
            event = await self._next(gone)
        if isinstance(event, Failure):
            await send_json(send, event.error.status, event.error.body, event.error.headers)
            return
        text, calls = "".join(pieces), list[ToolCall]()
        if self._asked.tools:
            text, calls = parse_tool_calls(text, self._asked.tools)
        await send_json(send, 200, self._completion.whole(text, calls, event))

    async def _stream(self, first: Event, gone: asyncio.Future[None], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})

        async def write(*lines: bytes) -> None:
            if lines:
                await send({"type": "http.response.body", "body": b"".join(lines), "more_body": True})

        await write(*self._completion.opening())
        held = ""
        event = first
        while isinstance(event, Piece):
            held += event.text
            begins = tool_call_start(held) if self._asked.tools else len(held)
            if begins:
                await write(self._completion.piece(held[:begins]))
                held = held[begins:]
            event = await self._next(gone)
        if isinstance(event, Failure):
            await write(error_line(event.error.body))
        else:
            await self._end(event, held, write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _end(self, end: End, held: str, write: Writer) -> None:
        text, calls = parse_tool_calls(held, self._asked.tools) if held else ("", [])
        lines = [self._completion.piece(text)] if text else []
        lines += [self._completion.calls(calls)] if calls else []
        lines += self._completion.ending(end, called=bool(calls), with_usage=self._asked.include_usage)
        await write(*lines)


async def _until_gone(receive: Receive) -> None:
    """Wait until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
