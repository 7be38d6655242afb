"""Bodies of requests: collected within bounds of size, time and memory, and read as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from core.serve.asgi import Receive
from core.serve.errors import ApiError

#: Most bytes of a body. Its texts become a line of the protocol, where a character may take three times as many.
BODY_LIMIT = 1 << 20
#: Seconds for a body to arrive.
BODY_SECONDS = 20.0
#: Most bytes of all bodies that are arriving.
BODIES_LIMIT = 64 << 20


class Bodies:
    """Collects the bodies of requests.

    Together they have a limit too. Where it is exceeded, the body that has been under way for longest is refused: a
    client that sends its request at once is answered, however many others send theirs slowly.

    Args:
        limit: Most bytes of all that are under way; at least :data:`BODY_LIMIT`.
        seconds: Time for one to arrive.
    """

    def __init__(self, limit: int = BODIES_LIMIT, seconds: float = BODY_SECONDS) -> None:
        self._limit = limit
        self._seconds = seconds
        #: By the deadline of each, the oldest first: how many bytes of it are there.
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
                        self._make_room()
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

    def _make_room(self) -> None:
        while sum(self._arriving.values()) > self._limit:
            oldest = next(iter(self._arriving))
            del self._arriving[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())


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
