"""The routes: models, chat completions, completions, health."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.config.schema import ChatSection
from core.serve.asgi import App
from core.serve.body import Bodies, read_object
from core.serve.errors import ApiError, unexpected
from core.serve.middleware import HEALTH, AccessMiddleware
from core.serve.models import Models
from core.serve.objects import model_list, model_object
from core.serve.options import ServeOptions
from core.serve.queue import Job, RequestQueue
from core.serve.requests import CompletionRequest, model_name, read_chat, read_completion
from core.serve.response import CompletionResponse
from core.text import one_line

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

    def answers(read: Reader) -> Callable[[Request], Any]:
        async def answer(request: Request) -> CompletionResponse:
            # A request that is still arriving takes no place from one that is there.
            received = await bodies.collect(request.receive)
            give_back = queue.take_place()
            try:
                body = read_object(received)
                model = models.find(model_name(body))
                asked = read(body, model.defaults)
                job = Job(model, model.question(asked.question), asyncio.get_running_loop())
                queue.submit(job, give_back)
            except BaseException:
                give_back()
                raise
            return CompletionResponse(asked, job, queue)

        return answer

    app = Starlette(
        routes=[
            Route(HEALTH, health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            Route("/v1/chat/completions", answers(read_chat), methods=["POST"]),
            Route("/v1/completions", answers(read_completion), methods=["POST"]),
        ],
        exception_handlers={ApiError: _refused, HTTPException: _no_route, Exception: _mistake},
    )
    # A redirection would name this machine as the client does.
    app.router.redirect_slashes = False
    return AccessMiddleware(app, names=options.allowed_names, key=options.key, any_address=options.listens_everywhere)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - for the type checker: Starlette gives what is asked for
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
