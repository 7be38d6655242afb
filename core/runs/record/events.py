"""Run events: typed, one JSON object per line in ``events.jsonl``.

Every event carries ``t`` (Unix seconds) and ``type``. Numbers that are not finite are written as the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``, since JSON has no such numbers and a loss of NaN must never read as 0.

A record may come from anywhere, so decoding guarantees the ranges of values: integers have at most 64 bits, times are
calendar times or NaN, texts and lists have a bounded length, and are not nested.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from core.data.exclusion import EXCLUDED
from core.governor.promise import Promise

#: Longest line of an event, in bytes.
LINE_LIMIT = 1 << 20
#: Most characters of a prompt or an answer, and of any other text; longer texts are truncated. All texts of an event
#: fit into a line, even if every character is escaped.
TEXT_LIMIT, SENTENCE_LIMIT = 50_000, 4_000
#: Most entries of a list or a dictionary, and most characters of a key or a text in one.
ENTRIES_LIMIT, NAME_LIMIT = 256, 200
#: Greatest integer, positive or negative.
INTEGER_LIMIT = 1 << 63
#: Greatest time, positive or negative, in Unix seconds: the year 9891, within the calendar of datetime.
TIME_LIMIT = 2.5e11
#: End of the reason of a run whose result is of its best step.
BEST_CHOSEN = "the best one"


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
    """A phase has begun or progressed; ``done`` of ``total`` if it can be counted."""

    type: ClassVar[str] = "phase"
    name: str
    detail: str = ""
    done: int | None = None
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataEvent(Event):
    """Outcome of data preparation: ``rows == used + sum(dropped.values())``; lengths in tokens.

    ``held_out_rows`` and ``held_out_tokens`` count the rows measured at each evaluation, 0 without any.
    """

    type: ClassVar[str] = "data"
    rows: int
    used: int
    dropped: dict[str, int]
    tokens: int
    supervised_tokens: int
    longest: int
    held_out_rows: int | None = None
    held_out_tokens: int | None = None

    @property
    def ordered(self) -> int:
        """Rows in the order of an epoch, by which its steps are counted: those used, and the gaps of
        ``data.exclude``."""
        return self.used + self.dropped.get(EXCLUDED, 0)


@dataclass(frozen=True, kw_only=True)
class MemoryEvent(Event):
    """Memory use of the device, in bytes."""

    type: ClassVar[str] = "memory"
    device: str
    predicted_bytes: dict[str, int] | None = None
    rehearsed_bytes: int | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """An optimizer step. ``tokens`` leaves padding out; ``seconds`` leaves pauses out.

    In preference training, ``reward_margin`` is the mean reward of better answers less the mean of worse ones, and
    ``reward_accuracy`` the share of pairs in the right order.
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
    """An evaluation on held-out rows; in preference training without perplexity, and with the rewards as in
    :class:`StepEvent`. ``probe_loss`` is the loss per token on the general probe (:mod:`core.evaluation.probe`).
    """

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
    probe_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeEvent(Event):
    """The loss of the untouched model on the general probe, if no evaluation measures it; it took ``seconds``."""

    type: ClassVar[str] = "probe"
    step: int
    loss: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SampleEvent(Event):
    """A generated answer of the model; ``source`` is ``base`` or ``step-N``.

    Of a held-out question, ``expected`` is its answer in the dataset, ``exact_match`` whether it was given (as
    :class:`EvalEvent` counts it), and ``valid_json`` whether the answer is JSON where answers of the dataset are.
    ``correction`` is true for a question of ``data.corrections``, whose expected answer the user wrote.
    """

    type: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str
    source: str
    expected: str | None = None
    exact_match: bool | None = None
    valid_json: bool | None = None
    correction: bool | None = None


@dataclass(frozen=True, kw_only=True)
class HardwareEvent(Event):
    """Devices as dictionaries of :class:`core.hardware.snapshot.Device`, the memory in bytes of the machine or of the
    container, by which the kernel's OOM killer decides, and the rest of the machine as a dictionary of
    :class:`core.hardware.snapshot.Host`; missing figures are null."""

    type: ClassVar[str] = "hardware"
    devices: list[dict[str, Any]]
    energy_wh: float | None = None
    host_memory_used: int | None = None
    host_memory_total: int | None = None
    host: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class RanksEvent(Event):
    """Processes of a run of several, at each start: dictionaries of :class:`core.runs.record.state.Rank`, and the
    ``strategy`` by which they share the work."""

    type: ClassVar[str] = "ranks"
    ranks: list[dict[str, Any]]
    strategy: str = ""


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
    """An action of the governor for heat, power, memory, disk or the night (:mod:`core.governor.policy`): ``slow``,
    ``full``, ``power_limit``, ``pause``, ``resume``, ``checkpoint`` or ``stop``; ``duty`` is the share of time spent
    working from then on."""

    type: ClassVar[str] = "governor"
    action: str
    cause: str
    value: float | None = None
    limit: float | None = None
    duty: float | None = None


@dataclass(frozen=True, kw_only=True)
class NightEvent(Event, Promise):
    """Promise of the plan for the night."""

    type: ClassVar[str] = "night"

    @property
    def misses_deadline(self) -> bool:
        """True if the deadline is given up, as the run will end too late."""
        late = self.deadline is not None and self.finish > self.deadline
        return self.nearest_deadline is not None or late

    @property
    def misses_energy(self) -> bool:
        """True if the wish for energy is given up, as the run will use too much."""
        limit, expected = self.energy_limit_kwh, self.energy_kwh
        too_much = limit is not None and expected is not None and expected > limit
        return self.nearest_energy_kwh is not None or too_much


@dataclass(frozen=True, kw_only=True)
class RollbackEvent(Event):
    """The run has gone back to the checkpoint of ``step`` for a loss spike; the steps from ``first`` to ``last`` are
    left out from then on. Their loss was up to ``loss`` instead of about ``expected``; ``rows`` names their rows."""

    type: ClassVar[str] = "rollback"
    step: int
    first: int
    last: int
    loss: float
    expected: float | None = None
    rows: str = ""


@dataclass(frozen=True, kw_only=True)
class NoticeEvent(Event):
    """A message for the user; ``level`` is ``info``, ``warning`` or ``error``."""

    type: ClassVar[str] = "notice"
    level: str
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class ControlEvent(Event):
    """A command was executed (or refused); ``sender`` (in the file: ``from``) is ``socket``, ``SIGTERM``, …"""

    type: ClassVar[str] = "control"
    command: str
    sender: str
    result: str


@dataclass(frozen=True, kw_only=True)
class FinishedEvent(Event):
    """The run reached its last step; ``adapter`` is relative to the run directory. ``refused`` names
    the missed bars of ``eval.gate``; there is no adapter then."""

    type: ClassVar[str] = "finished"
    reason: str
    step: int
    best: int | None = None
    adapter: str | None = None
    hint: str = ""
    refused: str | None = None

    @property
    def result_step(self) -> int:
        """The step of the result, written or refused: the last one, or the best by ``checkpoint.final``."""
        return self.best if self.best is not None and self.reason.endswith(BEST_CHOSEN) else self.step


@dataclass(frozen=True, kw_only=True)
class StoppedEvent(FinishedEvent):
    """The run was stopped on request, before its last step."""

    type: ClassVar[str] = "stopped"


@dataclass(frozen=True, kw_only=True)
class FailedEvent(FinishedEvent):
    """The run could not go on; ``reason`` is the sentence for the user."""

    type: ClassVar[str] = "failed"


def _kinds(base: type[Event]) -> Iterator[type[Event]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


#: Kinds of events by ``type``.
_TYPES: dict[str, type[Event]] = {kind.type: kind for kind in _kinds(Event)}
_FILE_NAMES = {"sender": "from"}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

JSONValue: TypeAlias = Any


class MalformedEventError(ValueError):
    """A line that is not an event."""


def as_json(value: JSONValue) -> JSONValue:
    """A value with non-finite numbers replaced by the strings that stand for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value


def encode_event(event: Event) -> str:
    """An event as one line of ``events.jsonl``, newline included; always valid UTF-8."""
    fields = {_FILE_NAMES.get(key, key): as_json(_cut(key, value)) for key, value in dataclasses.asdict(event).items()}
    ordered = {"t": fields.pop("t"), "type": event.type, **fields}
    line = json.dumps(ordered, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate (from an escape in somebody's data) exists in JSON only as an escape.
        line = json.dumps(ordered, ensure_ascii=True, allow_nan=False)
    return line + "\n"


def _cut(name: str, value: JSONValue) -> JSONValue:
    """Value of a field: a text truncated to its limit, anything else unchanged."""
    if not isinstance(value, str):
        return value
    limit = TEXT_LIMIT if name in ("prompt", "text") else SENTENCE_LIMIT
    return value if len(value) <= limit else value[: limit - 1] + "…"


def _same(value: JSONValue) -> JSONValue:
    return value


def _to_integer(value: JSONValue) -> int:
    if type(value) is not int or not -INTEGER_LIMIT <= value <= INTEGER_LIMIT:
        raise TypeError("no integer of 64 bits")
    return value


def _to_float(value: JSONValue) -> float:
    if isinstance(value, str):
        return _NOT_FINITE[value]
    return float(_to_integer(value)) if isinstance(value, int) else float(value)


def _to_time(value: JSONValue) -> float:
    """A time in seconds; an event with an invalid time is kept, with NaN."""
    moment = _to_float(value)
    return moment if -TIME_LIMIT <= moment <= TIME_LIMIT else math.nan


def _to_counts(value: JSONValue) -> dict[str, int]:
    if len(value) > ENTRIES_LIMIT or any(len(name) > NAME_LIMIT for name in value):
        raise TypeError("too much")
    return {name: _to_integer(count) for name, count in value.items()}


def _to_objects(value: JSONValue) -> list[dict[str, Any]]:
    if len(value) > ENTRIES_LIMIT or not all(isinstance(item, dict) for item in value):
        raise TypeError("not objects")
    return [_to_object(item) for item in value]


def _to_object(value: JSONValue) -> dict[str, Any]:
    return {name[:NAME_LIMIT]: _to_plain(inner) for name, inner in _first(value.items())}


def _to_plain(value: JSONValue) -> JSONValue:
    """A number, a text, or a list of these or of flat objects; None for anything else."""
    if isinstance(value, list):
        return [_to_leaf(item) for item in _first(value) if not isinstance(item, list)]
    return _to_scalar(value)


def _to_leaf(value: JSONValue) -> JSONValue:
    if isinstance(value, dict):
        return {name[:NAME_LIMIT]: _to_scalar(inner) for name, inner in _first(value.items())}
    return _to_scalar(value)


def _to_scalar(value: JSONValue) -> JSONValue:
    if isinstance(value, str):
        return value[:NAME_LIMIT]
    if type(value) is int and abs(value) > INTEGER_LIMIT:
        return None
    return None if isinstance(value, (dict, list)) else value


def _first(items: Iterable[Any]) -> list[Any]:
    return list(itertools.islice(items, ENTRIES_LIMIT))


#: Annotations of fields to the JSON types they accept, and their conversion.
_READERS: dict[str, tuple[frozenset[type], Callable[[JSONValue], JSONValue]]] = {
    "int": (frozenset({int}), _to_integer),
    "float": (frozenset({int, float, str}), _to_float),
    "str": (frozenset({str}), _same),
    "bool": (frozenset({bool}), _same),
    "dict[str, int]": (frozenset({dict}), _to_counts),
    "list[dict[str, Any]]": (frozenset({list}), _to_objects),
    "dict[str, Any]": (frozenset({dict}), _to_object),
}


@dataclass(frozen=True)
class _Field:
    """Decoding of one field of an event."""

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
    if item.name == "t":
        read = _to_time
    elif accepted == frozenset({str}):
        read = functools.partial(_cut, item.name)
    has_default = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
    # The time has a default when events are created, but is required when they are read.
    required = not has_default or item.name == "t"
    return _Field(item.name, _FILE_NAMES.get(item.name, item.name), required, optional, accepted, read)


_FIELDS: dict[type[Event], list[_Field]] = {
    kind: [_describe_field(item) for item in dataclasses.fields(kind)] for kind in _TYPES.values()
}


_NUMBER = rb"(-?(?:0|[1-9]\d{0,15})(?:\.\d{1,20})?(?:[eE][+-]?\d{1,3})?)"
_COUNT = rb"(0|[1-9]\d{0,17})"
#: A step as :func:`encode_event` writes it, without rewards and with finite figures: nearly all lines of a long record.
_STEP_LINE = re.compile(
    rb'\{"t": %(n)b, "type": "step", "step": %(c)b, "epoch": %(n)b, "loss": %(n)b, "lr": %(n)b, "grad_norm": %(n)b, '
    rb'"tokens": %(c)b, "supervised_tokens": %(c)b, "seconds": %(n)b, "tokens_per_second": %(n)b, '
    rb'"paused_seconds": %(n)b, "reward_margin": null, "reward_accuracy": null\}[ \t\r\n]*'
    % {b"n": _NUMBER, b"c": _COUNT}
)


def decode_step(line: bytes) -> StepEvent | None:
    """A step in its usual form, decoded four times as fast as other events; None for any other line."""
    found = _STEP_LINE.fullmatch(line)
    if found is None:
        return None
    moment, step, epoch, loss, lr, norm, tokens, supervised, seconds, rate, paused = found.groups()
    event = object.__new__(StepEvent)
    # The class is frozen: its own constructor sets each field through a function.
    vars(event).update(
        t=_to_time(float(moment)),
        step=int(step),
        epoch=float(epoch),
        loss=float(loss),
        lr=float(lr),
        grad_norm=float(norm),
        tokens=int(tokens),
        supervised_tokens=int(supervised),
        seconds=float(seconds),
        tokens_per_second=float(rate),
        paused_seconds=float(paused),
        reward_margin=None,
        reward_accuracy=None,
    )
    return event


_PLAIN_NUMBER = rb"(\d{1,16}(?:\.\d*)?(?:[eE][+-]?\d{1,2})?)"
_HARDWARE_LINE = re.compile(
    rb'\{"t": ' + _PLAIN_NUMBER + rb', "type": "hardware".*"energy_wh": (?:null|' + _PLAIN_NUMBER + rb")[,}]"
)


def decode_totals(line: bytes) -> Event | None:
    """Decode an event for :class:`core.runs.record.timings.RunTotals`: as :func:`decode_event`, but a hardware event
    gets only time and energy, in a tenth of the time.

    Raises:
        MalformedEventError: As :func:`decode_event`.
    """
    if (step := decode_step(line)) is not None:
        return step
    if (found := _HARDWARE_LINE.match(line)) is None:
        return decode_event(line)
    energy = None if found[2] is None else float(found[2])
    return HardwareEvent(t=_to_time(float(found[1])), devices=[], energy_wh=energy)


def decode_event(line: str | bytes) -> Event | None:
    """Decode one line.

    Args:
        line: A line of ``events.jsonl``.

    Returns:
        The event, or None for a type that this version does not know. Unknown fields are ignored.

    Raises:
        MalformedEventError: If it is not JSON, has no type, lacks a field or has a field of the wrong type.
    """
    if isinstance(line, bytes) and (step := decode_step(line)) is not None:
        return step
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
        raise MalformedEventError(f"{item.key} cannot have that value") from error
