"""Fields of a request, read one by one, each refused with a sentence that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.serve.errors import ApiError


class Fields:
    """The fields of a request's body.

    Args:
        body: The body.
        prefix: What comes before the name of a field in messages, such as ``stream_options.``.
    """

    def __init__(self, body: Mapping[str, Any], prefix: str = "") -> None:
        self._body = body
        self._prefix = prefix

    def has(self, name: str) -> bool:
        """Whether a field is there, and is not null."""
        return self._body.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value of a field, whatever it is; None where it is absent."""
        return self._body.get(name)

    def text(self, name: str) -> str:
        """A text.

        Raises:
            ApiError: If it is missing, or none.
        """
        value = self.raw(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where it is absent.

        Raises:
            ApiError: If it is neither.
        """
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return bool(value)

    def whole(self, name: str) -> int | None:
        """A whole number; None where it is absent.

        Raises:
            ApiError: If it is none.
        """
        value = self.raw(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.wrong(name, "a whole number")
        return value

    def number(self, name: str) -> float | None:
        """A finite number; None where it is absent.

        Raises:
            ApiError: If it is none.
        """
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e18 or math.isnan(value):
            raise self.wrong(name, "a number")
        return float(value)

    def group(self, name: str) -> Fields:
        """An object in the request; an empty one where it is absent.

        Raises:
            ApiError: If it is none.
        """
        value = self.raw(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value or {}, f"{self._prefix}{name}.")

    def items(self, name: str) -> list[Any]:
        """A list; an empty one where it is absent.

        Raises:
            ApiError: If it is none.
        """
        value = self.raw(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value or []

    def wrong(self, name: str, wanted: str) -> ApiError:
        """The error for a field of the wrong kind."""
        return ApiError(400, f"{self._prefix}{name} must be {wanted}.", param=f"{self._prefix}{name}")

    def refuse(self, name: str, why: str) -> ApiError:
        """The error for a field that asks for what is not offered."""
        shown = f"{self._prefix}{name}"
        return ApiError(400, f"{shown} is not offered: {why}", param=shown, code="unsupported_parameter")
