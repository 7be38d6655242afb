"""Messages between a process and its sandbox: frames of a length in eight bytes and the data, and results as JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import select
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, get_type_hints

from pydantic import TypeAdapter

#: Largest answer, in bytes.
LARGEST = 64 << 20
_LENGTH = 8


class Stream(Protocol):
    """An unbuffered end of a pipe."""

    def fileno(self) -> int:
        """File descriptor."""

    def read(self, size: int, /) -> bytes | None:
        """At most ``size`` bytes, as soon as any are available."""


class FrameError(Exception):
    """The peer did not send a valid frame: it ended, was late, or sent too much."""

    def __init__(self, *, is_late: bool = False, is_large: bool = False) -> None:
        super().__init__()
        self.is_late = is_late
        self.is_large = is_large


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Send a frame.

    Raises:
        OSError: If the peer has closed the pipe.
    """
    view = memoryview(len(data).to_bytes(_LENGTH, "big") + data)
    while view:
        view = view[stream.write(view) :]
    stream.flush()


def read_frame(stream: Stream, seconds: float | None = None) -> bytes:
    """Read the next frame.

    Args:
        stream: Pipe to read; must not be buffered.
        seconds: Timeout; None to wait without limit.

    Raises:
        FrameError: If the frame is late or larger than :data:`LARGEST`, or the stream ends.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    length = int.from_bytes(_read(stream, _LENGTH, deadline), "big")
    if length > LARGEST:
        raise FrameError(is_large=True)
    return _read(stream, length, deadline)


def relay_frame(source: Stream, sink: IO[bytes]) -> None:
    """Pass on the next frame without looking at it.

    Raises:
        FrameError: If the stream ends before the frame.
        OSError: If the peer has closed the pipe.
    """
    head = _read(source, _LENGTH, None)
    sink.write(head)
    missing = int.from_bytes(head, "big")
    while missing:
        piece = source.read(min(missing, 1 << 20))
        if not piece:
            raise FrameError
        sink.write(piece)
        missing -= len(piece)
    sink.flush()


def _read(stream: Stream, count: int, deadline: float | None) -> bytes:
    pieces, missing = [], count
    while missing:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0 or not _has_more(stream, left):
                raise FrameError(is_late=True)
        piece = stream.read(min(missing, 1 << 20))
        if not piece:
            raise FrameError
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _has_more(stream: Stream, seconds: float) -> bool:
    # select() does not support descriptors above 1023.
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    return bool(poll.poll(seconds * 1000))


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
