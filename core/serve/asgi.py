"""The types of ASGI, as far as they are used here, what a request's state holds, and responses in JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

#: In a request's state: the function that is called once it has shown the key, and says whether there is room for its
#: connection.
KEY_SHOWN = "localtune_key_shown"
#: In a request's state: bytes that may be sent between two parts of the response, and mean nothing to a client.
MEANS_NOTHING = "localtune_means_nothing"


async def send_json(send: Send, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    """Send a response with a JSON value.

    Texts of a model may hold half a character; JSON spells it as an escape.
    """
    body = json.dumps(value, allow_nan=False).encode("ascii")
    given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    raw = [(name.lower().encode("ascii"), text.encode("ascii")) for name, text in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def closing(send: Send) -> Send:
    """A ``send`` whose response is the last one on its connection."""

    async def send_last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await send(message)

    return send_last
