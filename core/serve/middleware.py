"""HTTP request checks before anything else looks at a request: host, API key, content type, size."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from core.serve.errors import ApiError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Most bytes of a body. Its texts become a line of the protocol, where a character may take three times as many.
BODY_LIMIT = 1 << 20
#: Seconds for a body to arrive.
BODY_SECONDS = 20.0
#: The path that needs no key: it says that the server is there, and nothing else.
HEALTH = "/health"


class AccessMiddleware:
    """ASGI middleware that refuses requests before they reach the application.

    A page in a browser cannot get through: by a name of its own (DNS rebinding) it fails at ``Host``, and without the
    headers of CORS it may send neither the key nor JSON.

    Args:
        app: The application.
        names: What clients may call this machine.
        key: The key that they send.
        any_address: Whether an address in numbers is allowed as well, whichever it is: where all addresses of the
            machine are listened on. Rebinding needs a name.
    """

    def __init__(self, app: App, *, names: frozenset[str], key: str, any_address: bool = False) -> None:
        self._app = app
        self._names = names
        self._key = f"Bearer {key}".encode()
        self._any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await send_json(send, error.status, error.body, error.headers | {"Connection": "close"})
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = scope["headers"]
        if not self._knows([value for name, value in headers if name == b"host"]):
            raise ApiError(
                421,
                "This server is not known by the name in the Host header. Use its address, or start it with "
                "--allow-host NAME.",
                code="unknown_host",
            )
        if scope["path"] == HEALTH:
            return
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1 or not hmac.compare_digest(given[0], self._key):
            raise ApiError(
                401,
                "The key is missing or wrong. Send the one that was printed when the server started, as "
                "'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )
        if scope["method"] == "POST":
            self._check_body(headers)

    def _knows(self, hosts: list[bytes]) -> bool:
        if len(hosts) != 1:
            return False
        name = host_name(hosts[0].decode("latin-1"))
        return name in self._names or (self._any_address and _is_address(name))

    @staticmethod
    def _check_body(headers: list[tuple[bytes, bytes]]) -> None:
        values = dict(headers)
        kind = values.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(415, "Send the request as JSON, with 'Content-Type: application/json'.")
        if values.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "Send the request without compression.")
        length = values.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > BODY_LIMIT):
            raise too_large()


def host_name(host: str) -> str:
    """The name in a ``Host`` header, in lower case, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def too_large() -> ApiError:
    """The error for a body that is too large."""
    return ApiError(413, f"The request is larger than {BODY_LIMIT >> 20} MiB.", code="request_too_large")


async def read_body(receive: Receive) -> dict[str, Any]:
    """The body of a request, a JSON object.

    Raises:
        ApiError: If it is none, is too large, or takes too long to arrive.
    """
    body = bytearray()
    try:
        await asyncio.wait_for(_collect(receive, body), BODY_SECONDS)
    except TimeoutError:
        raise ApiError(408, f"The request did not arrive within {BODY_SECONDS:g} s.") from None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request is not JSON.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The request is not a JSON object.")
    return value


async def _collect(receive: Receive, body: bytearray) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "The client has gone.")
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            raise too_large()
        if not message.get("more_body", False):
            return


async def send_json(send: Send, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    """Send a response with a JSON value.

    Texts of a model may hold half a character; JSON spells it as an escape.
    """
    body = json.dumps(value, allow_nan=False).encode("ascii")
    given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    raw = [(name.lower().encode("ascii"), text.encode("ascii")) for name, text in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
