"""What a run tells: typed events, one JSON object a line in ``events.jsonl``.

Every event carries ``t`` (Unix seconds) and ``type``. Numbers that are not finite are written as the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``, since JSON has no such numbers and a loss of NaN must never read as 0.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    type: ClassVar[str] = ""
    t: float = field(default_factory=time.time)


PhaseName = Literal[
    "importing", "preparing_model", "preparing_data", "loading_model", "rehearsing", "training", "evaluating", "saving"
]


@dataclass(frozen=True, kw_only=True)
class PhaseEvent(Event):
    """A phase has begun or got further; ``done`` of ``total`` where it can be counted."""

    type: ClassVar[str] = "phase"
    name: str
    detail: str = ""
    done: int | None = None
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataEvent(Event):
    """What became of the rows: ``rows == used + sum(dropped.values())``; lengths in tokens."""

    type: ClassVar[str] = "data"
    rows: int
    used: int
    dropped: dict[str, int]
    tokens: int
    supervised_tokens: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class MemoryEvent(Event):
    """Memory of the device, in bytes."""

    type: ClassVar[str] = "memory"
    device: str
    predicted_bytes: dict[str, int] | None = None
    rehearsed_bytes: int | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """One optimizer step. ``tokens`` leaves padding out; ``seconds`` leaves pauses out.

    Where answers are compared, ``reward_margin`` is the mean reward of better ones less that of worse ones, and
    ``reward_accuracy`` the share on the right side.
    """

    type: ClassVar[str] = "step"
    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    seconds: float
    tokens_per_second: float
    paused_seconds: float = 0.0
    reward_margin: float | None = None
    reward_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvalEvent(Event):
    """A measurement on held-out rows; where answers are compared, without perplexity and with the rewards as in
    :class:`StepEvent`."""

    type: ClassVar[str] = "eval"
    step: int
    loss: float
    perplexity: float | None
    seconds: float
    exact_match: float | None = None
    valid_json: float | None = None
    rows: int | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class SampleEvent(Event):
    """An answer of the model; ``source`` is ``base`` or ``step-N``."""

    type: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class HardwareEvent(Event):
    """Devices as dictionaries of :class:`core.hardware.snapshot.Device`; what one does not report is null."""

    type: ClassVar[str] = "hardware"
    devices: list[dict[str, Any]]
    energy_wh: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """A checkpoint is complete and durable; ``path`` is relative to the run directory."""

    type: ClassVar[str] = "checkpoint"
    step: int
    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GovernorEvent(Event):
    """Training was held back for heat or power."""

    type: ClassVar[str] = "governor"
    action: str
    cause: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, kw_only=True)
class NoticeEvent(Event):
    """Something the user should know; ``level`` is ``info``, ``warning`` or ``error``."""

    type: ClassVar[str] = "notice"
    level: str
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class ControlEvent(Event):
    """A command was carried out (or refused); ``sender`` (in the file: ``from``) is ``socket``, ``SIGTERM``, …"""

    type: ClassVar[str] = "control"
    command: str
    sender: str
    result: str


@dataclass(frozen=True, kw_only=True)
class FinishedEvent(Event):
    """The run reached its last step; ``adapter`` is relative to the run directory."""

    type: ClassVar[str] = "finished"
    reason: str
    step: int
    best: int | None = None
    adapter: str | None = None
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class StoppedEvent(FinishedEvent):
    """The run was stopped on request, before its last step."""

    type: ClassVar[str] = "stopped"


@dataclass(frozen=True, kw_only=True)
class FailedEvent(FinishedEvent):
    """The run could not go on; ``reason`` is the sentence for the user."""

    type: ClassVar[str] = "failed"


_TYPES: dict[str, type[Event]] = {
    kind.type: kind
    for kind in (
        PhaseEvent,
        DataEvent,
        MemoryEvent,
        StepEvent,
        EvalEvent,
        SampleEvent,
        HardwareEvent,
        CheckpointEvent,
        GovernorEvent,
        NoticeEvent,
        ControlEvent,
        FinishedEvent,
        StoppedEvent,
        FailedEvent,
    )
}
_FILE_NAMES = {"sender": "from"}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

JSONValue: TypeAlias = Any


class MalformedEventError(ValueError):
    """A line that is no event."""


def as_json(value: JSONValue) -> JSONValue:
    """A value with the numbers that JSON lacks as the strings that stand for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value


def encode_event(event: Event) -> str:
    """One line of ``events.jsonl``, newline included; it can always be encoded as UTF-8."""
    fields = {_FILE_NAMES.get(key, key): as_json(value) for key, value in dataclasses.asdict(event).items()}
    ordered = {"t": fields.pop("t"), "type": event.type, **fields}
    line = json.dumps(ordered, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate (from an escape in somebody's data) exists in JSON only as an escape.
        line = json.dumps(ordered, ensure_ascii=True, allow_nan=False)
    return line + "\n"


def _to_float(value: JSONValue) -> float:
    if isinstance(value, str):
        return _NOT_FINITE[value]
    return float(value)


def _to_counts(value: JSONValue) -> dict[str, int]:
    if not all(type(count) is int for count in value.values()):
        raise TypeError("not counts")
    return dict(value)


def _to_objects(value: JSONValue) -> list[dict[str, Any]]:
    if not all(isinstance(item, dict) for item in value):
        raise TypeError("not objects")
    return list(value)


def _same(value: JSONValue) -> JSONValue:
    return value


#: What a field's annotation accepts from JSON, and how it is read.
_READERS: dict[str, tuple[frozenset[type], Callable[[JSONValue], JSONValue]]] = {
    "int": (frozenset({int}), _same),
    "float": (frozenset({int, float, str}), _to_float),
    "str": (frozenset({str}), _same),
    "dict[str, int]": (frozenset({dict}), _to_counts),
    "list[dict[str, Any]]": (frozenset({list}), _to_objects),
}


@dataclass(frozen=True)
class _Field:
    """How one field of an event is read."""

    name: str
    key: str
    required: bool
    optional: bool
    accepted: frozenset[type]
    read: Callable[[JSONValue], JSONValue]


def _describe_field(item: dataclasses.Field[Any]) -> _Field:
    annotation = str(item.type)
    optional = annotation.endswith(" | None")
    accepted, read = _READERS[annotation.removesuffix(" | None")]
    has_default = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
    # The time has a default for those who make events, not for those who read them.
    required = not has_default or item.name == "t"
    return _Field(item.name, _FILE_NAMES.get(item.name, item.name), required, optional, accepted, read)


_FIELDS: dict[type[Event], list[_Field]] = {
    kind: [_describe_field(item) for item in dataclasses.fields(kind)] for kind in _TYPES.values()
}


def decode_event(line: str | bytes) -> Event | None:
    """Read one line.

    Args:
        line: A line of ``events.jsonl``.

    Returns:
        The event, or None for a type that this version does not know. Unknown fields are ignored.

    Raises:
        MalformedEventError: If it is not JSON, has no type, lacks a field or has one of the wrong type.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedEventError("not JSON") from error
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise MalformedEventError("no type")
    kind = _TYPES.get(data["type"])
    if kind is None:
        return None
    values: dict[str, JSONValue] = {}
    for item in _FIELDS[kind]:
        if item.key in data:
            values[item.name] = _read_field(item, data[item.key])
        elif item.required:
            raise MalformedEventError(f"{kind.type} lacks {item.key}")
    return kind(**values)


def _read_field(item: _Field, value: JSONValue) -> JSONValue:
    if value is None and item.optional:
        return None
    try:
        if type(value) not in item.accepted:
            raise TypeError("wrong type")
        return item.read(value)
    except (TypeError, KeyError, OverflowError) as error:
        raise MalformedEventError(f"{item.key} cannot be {str(value)[:80]!r}") from error
