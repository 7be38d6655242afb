"""Routes of the server, and the checks before them: host, origin, key, size."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.config.schema import ChatSection
from core.serve.asgi import (
    BODY_LIMIT,
    KEY_SHOWN,
    ApiError,
    App,
    Bodies,
    Receive,
    Scope,
    Send,
    closing,
    read_object,
    send_json,
    too_large,
    unexpected,
)
from core.serve.models import Models
from core.serve.options import ServeOptions
from core.serve.queue import QueuedAnswer, RequestQueue
from core.serve.requests import CompletionRequest, model_name, read_chat, read_completion
from core.serve.response import CompletionResponse, model_list, model_object
from core.serve.responses import read_response
from core.text import one_line

#: Most bytes of the head of a request: its target, and the names and values of its headers.
HEAD_BYTES = 16 << 10
_HOST = re.compile(r"(?:\[(?P<address>[^\[\]/@\s]*:[^\[\]/@\s]*)\]|(?P<name>[^\[\]:/?#@\\\s]+))(?::[0-9]*)?")
#: The path that needs no key: it only says that the server is up.
HEALTH = "/health"


class AccessMiddleware:
    """ASGI middleware that refuses requests before they reach the application.

    A page in a browser cannot get through: with its own name (DNS rebinding) it fails at ``Host``, and without CORS
    headers, which only allowed origins get, it may send neither the key nor JSON.

    A response to a request without the key is the last one on its connection.

    Args:
        app: The application.
        names: Host names that clients may use for this machine.
        key: The key that they send.
        any_address: Allow any numeric address as well, for a server on all addresses of the machine. Rebinding needs a
            name.
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
            has_key = self._check(scope)
            if has_key and not scope["state"][KEY_SHOWN]():
                raise ApiError(503, "There are too many connections. Close some.", code="too_many_connections")
        except ApiError as error:
            await send_json(closing(send), error.status, error.body, error.headers)
            return
        await self._app(scope, receive, send if has_key else closing(send))

    def _check(self, scope: Scope) -> bool:
        """True if a request has the key; only the path of :data:`HEALTH` needs none.

        Raises:
            ApiError: If it may not be answered.
        """
        headers = scope["headers"]
        if _head_bytes(scope) > HEAD_BYTES:
            raise ApiError(431, f"The head of the request is larger than {HEAD_BYTES >> 10} KiB.")
        if not self._knows([value for name, value in headers if name == b"host"]):
            raise ApiError(
                421,
                "This server is not known by the name in the Host header. Use its address, or start it with "
                "--allow-host NAME.",
                code="unknown_host",
            )
        given = [value for name, value in headers if name == b"authorization"]
        has_key = len(given) == 1 and hmac.compare_digest(given[0], self._key)
        if scope["path"] == HEALTH:
            return has_key
        if not has_key:
            raise ApiError(
                401,
                "The key is missing or wrong. Send the one that was printed when the server started, as "
                "'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )
        if scope["method"] == "POST":
            self._check_body(headers)
        return True

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
    """The name in a ``Host`` header, in lower case, without its port; empty if the header is invalid.

    An address of IPv6 stands in brackets (RFC 9110, section 7.2; RFC 3986, section 3.2.2).
    """
    found = _HOST.fullmatch(host.strip().lower())
    return "" if found is None else found["address"] or found["name"]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _head_bytes(scope: Scope) -> int:
    """Bytes of a head; h11 bounds only a head that arrives in pieces."""
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    return target + sum(len(name) + len(value) for name, value in scope["headers"])


Reader: TypeAlias = Callable[[Mapping[str, Any], ChatSection], CompletionRequest]


def make_app(models: Models, queue: RequestQueue, options: ServeOptions) -> App:
    """The ASGI application.

    Args:
        models: The models that are served.
        queue: Where answers are generated.
        options: The key, and the names of this machine.
    """

    bodies = Bodies()

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def list_models(_: Request) -> Response:
        return JSONResponse(model_list(models.all))

    async def show_model(request: Request) -> Response:
        return JSONResponse(model_object(models.find(request.path_params["name"])))

    async def show_response(_: Request) -> Response:
        raise ApiError(404, "Responses are not stored. Send the whole conversation as input.")

    def answers(read: Reader) -> Callable[[Request], Any]:
        async def answer(request: Request) -> CompletionResponse:
            # A request that is still arriving takes no place in the queue.
            received = await bodies.collect(request.receive)
            give_back = queue.take_place()
            try:
                body = read_object(received)
                model = models.find(model_name(body))
                asked = read(body, model.defaults)
                questions = [model.question(each) for each in asked.questions]
                queued = QueuedAnswer(model, questions, asyncio.get_running_loop())
                queue.submit(queued, give_back)
            except BaseException:
                give_back()
                raise
            return CompletionResponse(asked, queued, queue)

        return answer

    app = Starlette(
        routes=[
            Route(HEALTH, health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            Route("/v1/chat/completions", answers(read_chat), methods=["POST"]),
            Route("/v1/completions", answers(read_completion), methods=["POST"]),
            Route("/v1/responses", answers(read_response), methods=["POST"]),
            Route("/v1/responses/{name:path}", show_response, methods=["GET", "DELETE"]),
        ],
        exception_handlers={ApiError: _refused, HTTPException: _no_route, Exception: _mistake},
    )
    # A redirection would repeat the client's name of this machine.
    app.router.redirect_slashes = False
    guarded = AccessMiddleware(
        app, names=options.allowed_names, key=options.key, any_address=options.listens_everywhere
    )
    return _with_origins(guarded, options.origins) if options.origins else guarded


def _with_origins(app: App, origins: Sequence[str]) -> App:
    """An application that pages of some origins may ask, with the key: errors have the headers of CORS as well."""
    allowing = CORSMiddleware(app, origins, ("GET", "POST"), ("*",), expose_headers=("Retry-After",))

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # A preflight is answered without the key, so it is the last request of its connection.
        is_keyless = scope["type"] == "http" and scope["method"] == "OPTIONS"
        await allowing(scope, receive, closing(send) if is_keyless else send)

    return answer


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - narrows the type: Starlette passes the registered class
    return _response(error)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    shown = one_line(request.url.path, 80)
    if status == 405:
        return _response(ApiError(405, f"{shown} does not take {request.method} requests."))
    return _response(ApiError(status, f"There is nothing at {shown}. The base URL of clients ends in /v1."))


async def _mistake(_: Request, error: Exception) -> Response:
    # uvicorn's own log is off.
    traceback.print_exception(error)
    return _response(unexpected(error))


def _response(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)
