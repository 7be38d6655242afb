"""Responses in OpenAI's form: completions as a whole or as a stream of events, and models."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from core.serve.asgi import MEANS_NOTHING, ApiError, Receive, Scope, Send, event_line, send_json
from core.serve.logprobs import Logprobs
from core.serve.models import ServedModel
from core.serve.queue import End, Event, Failure, Piece, QueuedAnswer, RequestQueue
from core.serve.requests import CompletionRequest
from core.serve.responses import ModelResponse
from core.template.tool_call_parser import ToolCall, parse_tool_calls, tool_call_start

#: Scores of tokens, as in :class:`core.worker.generate.scores.TokenScores`.
Scores: TypeAlias = Sequence[Mapping[str, Any]]
#: The last line of a complete stream.
DONE = b"data: [DONE]\n\n"


class Completion:
    """The completion that answers one request: as one object, or as the chunks of a stream.

    Args:
        asked: The request.
    """

    def __init__(self, asked: CompletionRequest) -> None:
        self._is_chat = asked.kind == "chat"
        self._kind, self._chunk_kind = "text_completion", "text_completion"
        if self._is_chat:
            self._kind, self._chunk_kind = "chat.completion", "chat.completion.chunk"
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = asked.model
        self._n = asked.n
        self._include_usage = asked.include_usage
        self._logprobs = [Logprobs("chat" if self._is_chat else "text") for _ in range(asked.count)]

    def whole(self, choices: Sequence[dict[str, Any]], ends: Sequence[End]) -> dict[str, Any]:
        """All answers."""
        head = self._head(self._kind, ends[0].source or None)
        return {**head, "choices": list(choices), "usage": self._usage(ends)}

    def choice(self, text: str, calls: Sequence[ToolCall], scores: Scores, end: End) -> dict[str, Any]:
        """An answer as a whole."""
        part: dict[str, Any] = {"text": text}
        if self._is_chat:
            message = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
            part = {"message": {**message, "tool_calls": [_call(call) for call in calls]} if calls else message}
        return self._choice(end.index, part, scores, _finish(end, bool(calls)))

    def opening(self, index: int) -> list[bytes]:
        """First chunks of an answer in a stream."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(index, {"delta": delta})] if self._is_chat else []

    def piece(self, index: int, text: str, scores: Scores = ()) -> bytes:
        """A piece of the text."""
        return self._chunk(index, {"delta": {"content": text}} if self._is_chat else {"text": text}, scores)

    def calls(self, index: int, calls: Sequence[ToolCall]) -> bytes:
        """Calls of tools, each whole."""
        listed = [{"index": place, **_call(call)} for place, call in enumerate(calls)]
        return self._chunk(index, {"delta": {"tool_calls": listed}})

    def ending(self, end: End, *, called: bool) -> bytes:
        """Last chunk of an answer in a stream."""
        part: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        return self._chunk(end.index, part, (), _finish(end, called), end.source or None)

    def closing(self, ends: Sequence[End]) -> list[bytes]:
        """Last chunks of a stream."""
        head = self._head(self._chunk_kind, ends[0].source or None)
        usage = [event_line({**head, "choices": [], "usage": self._usage(ends)})] if self._include_usage else []
        return [*usage, DONE]

    def failure(self, error: ApiError) -> bytes:
        """Last line of a stream that is broken off."""
        return event_line(error.body)

    def _chunk(
        self,
        index: int,
        part: dict[str, Any],
        scores: Scores = (),
        finish: str | None = None,
        source: str | None = None,
    ) -> bytes:
        choice = self._choice(index, part, scores, finish)
        return event_line({**self._head(self._chunk_kind, source), "choices": [choice]})

    def _choice(self, index: int, part: dict[str, Any], scores: Scores, finish: str | None) -> dict[str, Any]:
        """A choice of a completion or a chunk: its message, delta or text, and the reason of its end."""
        logprobs = self._logprobs[index].take(scores) if scores else None
        return {"index": index, **part, "logprobs": logprobs, "finish_reason": finish}

    def _usage(self, ends: Sequence[End]) -> dict[str, int]:
        # A prompt counts once, however many answers it has.
        read, written = sum(end.prompt_tokens for end in ends[:: self._n]), sum(end.tokens for end in ends)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _head(self, kind: str, source: str | None) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return {**head, "system_fingerprint": source}


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


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


#: A comment in a stream of events, which programs skip.
_COMMENT = b":\n\n"


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
        self._completion: Completion | ModelResponse = (
            ModelResponse(asked) if asked.kind == "response" else Completion(asked)
        )

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
        choices: list[dict[str, Any]] = []
        ends: list[End] = []
        event = first
        while True:
            pieces, scores = list[str](), list[dict[str, Any]]()
            while isinstance(event, Piece):
                pieces.append(event.text)
                scores += event.scores
                event = await self._next(gone)
            if isinstance(event, Failure):
                await send_json(send, event.error.status, event.error.body, event.error.headers)
                return
            text, calls = self._split("".join(pieces))
            choices.append(self._completion.choice(text, calls, scores, event))
            ends.append(event)
            if len(ends) == self._asked.count:
                break
            event = await self._next(gone)
        await send_json(send, 200, self._completion.whole(choices, ends))

    async def _stream(self, first: Event, gone: asyncio.Future[None], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})

        async def write(*lines: bytes) -> None:
            if lines:
                await send({"type": "http.response.body", "body": b"".join(lines), "more_body": True})

        ends: list[End] = []
        event = first
        while True:
            await write(*self._completion.opening(len(ends)))
            held, scores = "", list[dict[str, Any]]()
            while isinstance(event, Piece):
                held += event.text
                scores += event.scores
                begins = tool_call_start(held) if self._asked.tools else len(held)
                if self._asked.question.forced_tools:
                    begins = 0
                if begins or (scores and not held):
                    await write(self._completion.piece(len(ends), held[:begins], scores))
                    held, scores = held[begins:], []
                event = await self._next(gone)
            if isinstance(event, Failure):
                await write(self._completion.failure(event.error))
                break
            await write(*self._end(event, held, scores))
            ends.append(event)
            if len(ends) == self._asked.count:
                await write(*self._completion.closing(ends))
                break
            event = await self._next(gone)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _split(self, answer: str) -> tuple[str, list[ToolCall]]:
        """The text of an answer, and its calls."""
        text, calls = parse_tool_calls(answer, self._asked.tools) if self._asked.tools else (answer, [])
        if calls and self._asked.question.forced_tools:
            text = ""  # the template's own, such as an empty block of reasoning
        return text, calls[:1] if self._asked.one_call else calls

    def _end(self, end: End, held: str, scores: Scores) -> list[bytes]:
        text, calls = self._split(held)
        lines = [self._completion.piece(end.index, text, scores)] if text or scores else []
        lines += [self._completion.calls(end.index, calls)] if calls else []
        return [*lines, self._completion.ending(end, called=bool(calls))]


async def _until_gone(receive: Receive) -> None:
    """Wait until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
