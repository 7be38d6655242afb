"""The response to a question: as a whole, or as a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from core.serve.asgi import MEANS_NOTHING, Receive, Scope, Send, send_json
from core.serve.objects import Completion, error_line
from core.serve.queue import End, Event, Failure, Job, Piece, RequestQueue
from core.serve.requests import CompletionRequest
from core.template.tool_call_parser import ToolCall, parse_tool_calls, tool_call_start

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
        """Write them, as soon as the client has read what was before."""


class ClientGone(Exception):  # noqa: N818 - nothing is wrong with that
    """Raised when the client has closed the connection."""


class CompletionResponse:
    """An ASGI application that answers one request, and cancels the answer when the client goes.

    Args:
        asked: The request.
        job: Its answer.
        queue: Where the job is.
    """

    def __init__(self, asked: CompletionRequest, job: Job, queue: RequestQueue) -> None:
        self._asked = asked
        self._job = job
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
            self._queue.cancel(self._job)

    async def _next(self, gone: asyncio.Future[None]) -> Event:
        """The next event.

        Raises:
            ClientGone: If the client goes before it comes.
        """
        if self._job.events.empty():
            coming = asyncio.ensure_future(self._job.events.get())
            try:
                await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    return coming.result()
            finally:
                coming.cancel()
            raise ClientGone
        if gone.done():
            raise ClientGone
        return self._job.events.get_nowait()

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
