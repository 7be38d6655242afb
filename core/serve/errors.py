"""Errors as OpenAI's API tells them: ``{"error": {"message", "type", "param", "code"}}`` with a status."""

from __future__ import annotations

from typing import Any

from core.chat.request import QuestionError
from core.errors import UserError

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
        message: The problem and what to do, in a sentence or two.
        param: The field of the request that it is about.
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
    """A bug as an error of the API: it is named, and no more is told of it."""
    return ApiError(500, f"An error that should not happen: {type(error).__name__}. Please report it.")


def refusal_of(error: UserError) -> ApiError:
    """An error of the model as one of the API: of the client if the question is at fault, else of the server."""
    if isinstance(error, QuestionError):
        return ApiError(400, str(error), code=error.code or None)
    return ApiError(503, str(error), code="model_unavailable")
