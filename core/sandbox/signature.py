"""Return values of sandboxed functions, as JSON and back."""

from __future__ import annotations

import dataclasses
import functools
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter

R = TypeVar("R")


def dump(answer: dict[str, Any]) -> bytes:
    """Encode a return value as JSON, dataclasses as objects.

    Raises:
        TypeError: If it contains a value that JSON cannot represent.
    """
    return json.dumps(answer, default=_as_json).encode()


def check(function: Callable[..., R], value: Any) -> R:
    """Validate decoded JSON against the function's return annotation.

    Raises:
        pydantic.ValidationError: If it does not match.
    """
    found: R = _adapter(function).validate_python(value)
    return found


@functools.cache
def _adapter(function: Callable[..., Any]) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(function)["return"])


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (array, set, frozenset)):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
