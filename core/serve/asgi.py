"""ASGI types, the keys of a request's state, bodies within bounds, and errors in OpenAI's form.

An error is ``{"error": {"message", "type", "param", "code"}}`` with a status.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from core.chat.request import QuestionError
from core.errors import UserError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

#: In a request's state: the function to call once it has shown the key; it returns True if there is room for its
#: connection.
KEY_SHOWN = "localtune_key_shown"
#: In a request's state: bytes without meaning to a client, which may be sent between two parts of the response.
MEANS_NOTHING = "localtune_means_nothing"


async def send_json(send: Send, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    """Send a response with a JSON value.

    A model's text may have a lone surrogate, which JSON escapes.
    """
    body = json.dumps(value, allow_nan=False).encode("ascii")
    given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    raw = [(name.lower().encode("ascii"), text.encode("ascii")) for name, text in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def event_line(value: dict[str, Any], name: str = "") -> bytes:
    """An event of a stream (server-sent events), with its name if it has one."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, allow_nan=False)}\n\n".encode("ascii")


def closing(send: Send) -> Send:
    """A ``send`` whose response is the last one on its connection."""

    async def send_last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await send(message)

    return send_last


#: Seconds after which a client may try again, in ``Retry-After``.
RETRY_SECONDS = 5
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that is not answered as asked.

    Args:
        status: The status of the response.
        message: The problem and its remedy, in a sentence or two.
        param: The field of the request.
        code: A word for programs, such as ``model_not_found``.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response beside its type."""
        if self.status in (429, 503):
            return {"Retry-After": str(RETRY_SECONDS)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


def unexpected(error: Exception) -> ApiError:
    """A bug as an error of the API: its type, and no more."""
    return ApiError(500, f"An error that should not happen: {type(error).__name__}. Please report it.")


def refusal_of(error: UserError) -> ApiError:
    """An error of the model as an error of the API: the client's if the question is at fault, else the server's."""
    if isinstance(error, QuestionError):
        return ApiError(400, str(error), code=error.code or None)
    return ApiError(503, str(error), code="model_unavailable")


#: Most bytes of a body. Its texts become a line of the protocol, where a character may take three times as many.
BODY_LIMIT = 1 << 20
#: Seconds for a body to arrive.
BODY_SECONDS = 20.0
#: Most bytes of all bodies that are arriving.
BODIES_LIMIT = 64 << 20


class Bodies:
    """Collects the bodies of requests.

    Their total size is limited too. If it is exceeded, the oldest incomplete body is refused: a client that sends its
    request at once is answered, however many others send theirs slowly.

    Args:
        limit: Most bytes of all incomplete bodies; at least :data:`BODY_LIMIT`.
        seconds: Time for one to arrive.
    """

    def __init__(self, limit: int = BODIES_LIMIT, seconds: float = BODY_SECONDS) -> None:
        self._limit = limit
        self._seconds = seconds
        #: Bytes received, by deadline, oldest first.
        self._arriving: dict[asyncio.Timeout, int] = {}

    async def collect(self, receive: Receive) -> bytes:
        """The body of a request.

        Raises:
            ApiError: If it is too large, takes too long to arrive, or has no room beside the others; or if the client
                goes.
        """
        body = bytearray()
        is_whole = False
        deadline = asyncio.timeout(self._seconds)
        self._arriving[deadline] = 0
        try:
            async with deadline:
                while not is_whole:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(499, "The client has gone.")
                    body += message.get("body", b"")
                    if len(body) > BODY_LIMIT:
                        raise too_large()
                    if deadline in self._arriving:
                        self._arriving[deadline] = len(body)
                        while sum(self._arriving.values()) > self._limit:
                            oldest = next(iter(self._arriving))
                            del self._arriving[oldest]
                            oldest.reschedule(asyncio.get_running_loop().time())
                    is_whole = not message.get("more_body", False)
        except TimeoutError:
            if deadline not in self._arriving:
                raise ApiError(
                    429, "Too many requests are arriving at once. Try again.", code="too_many_requests"
                ) from None
            raise ApiError(408, f"The request did not arrive within {self._seconds:g} s.") from None
        finally:
            self._arriving.pop(deadline, None)
        return bytes(body)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        ApiError: If it is none.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request is not JSON.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The request is not a JSON object.")
    return value


def too_large() -> ApiError:
    """The error for a body that is too large."""
    return ApiError(413, f"The request is larger than {BODY_LIMIT >> 20} MiB.", code="request_too_large")
