from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runs import events
from core.runs.events import MalformedEventError, StepEvent, decode_event, encode_event
from tests.core.runs.event_strategies import EVENTS, JSON

STEP = StepEvent(
    t=1.0,
    step=1,
    epoch=0.5,
    loss=2.0,
    lr=1e-4,
    grad_norm=1.0,
    tokens=10,
    supervised_tokens=4,
    seconds=0.5,
    tokens_per_second=20.0,
)


def no_constants(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


@given(EVENTS)
def test_what_is_written_is_read(event: events.Event) -> None:
    line = encode_event(event)
    assert line.endswith("\n")
    assert "\n" not in line[:-1]
    json.loads(line, parse_constant=no_constants)
    # NaN differs from itself; its text does not.
    assert repr(decode_event(line.encode("utf-8"))) == repr(event)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stays_one(value: float) -> None:
    line = encode_event(dataclasses.replace(STEP, loss=value))
    assert json.loads(line, parse_constant=no_constants)["loss"] in ("NaN", "Infinity", "-Infinity")
    decoded = decode_event(line)
    assert isinstance(decoded, StepEvent)
    assert repr(decoded.loss) == repr(value)


def test_the_sender_of_a_command_is_called_from() -> None:
    line = encode_event(events.ControlEvent(command="stop", sender="SIGTERM", result="ok"))
    assert json.loads(line)["from"] == "SIGTERM"
    assert list(json.loads(line))[:2] == ["t", "type"]


def test_readable_text_is_written_as_it_is() -> None:
    assert "größer 大" in encode_event(events.NoticeEvent(level="info", code="x", message="größer 大"))


@given(st.binary(max_size=200))
def test_bytes_are_an_event_or_malformed(data: bytes) -> None:
    try:
        decode_event(data)
    except MalformedEventError:
        return


@given(JSON, st.sampled_from(sorted(events._TYPES)), st.integers(0, 20))
def test_json_of_any_shape_is_an_event_or_malformed(value: object, kind: str, position: int) -> None:
    fields = [events._FILE_NAMES.get(item.name, item.name) for item in dataclasses.fields(events._TYPES[kind])]
    broken = {**json.loads(encode_event(STEP)), "type": kind, fields[position % len(fields)]: value}
    for candidate in (value, broken):
        try:
            decode_event(json.dumps(candidate))
        except MalformedEventError:
            continue


@pytest.mark.parametrize(
    "change",
    [
        {"loss": None},
        {"loss": "2.0"},
        {"loss": True},
        {"step": 1.5},
        {"step": True},
        {"t": "now"},
        {"loss": 10**400},
        {"lr": {}},
    ],
)
def test_a_field_of_the_wrong_type_is_malformed(change: dict[str, object]) -> None:
    fields = json.loads(encode_event(STEP))
    with pytest.raises(MalformedEventError):
        decode_event(json.dumps({**fields, **change}))


@pytest.mark.parametrize("missing", ["t", "type", "step", "loss"])
def test_a_missing_field_is_malformed(missing: str) -> None:
    fields = json.loads(encode_event(STEP))
    del fields[missing]
    with pytest.raises(MalformedEventError):
        decode_event(json.dumps(fields))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("data", "dropped", {"long": "many"}), ("hardware", "devices", ["gpu"]), ("data", "dropped", [])],
)
def test_containers_are_checked_inside(kind: str, field: str, value: object) -> None:
    sample: dict[str, events.Event] = {
        "data": events.DataEvent(rows=1, used=1, dropped={}, tokens=1, supervised_tokens=1, longest=1),
        "hardware": events.HardwareEvent(devices=[]),
    }
    fields = json.loads(encode_event(sample[kind]))
    with pytest.raises(MalformedEventError):
        decode_event(json.dumps({**fields, field: value}))


def test_unknown_types_and_fields_and_absent_optional_ones_are_tolerated() -> None:
    assert decode_event('{"t": 1, "type": "from-the-future", "x": 1}') is None
    fields = {**json.loads(encode_event(STEP)), "invented": [1], "loss": 2}
    del fields["paused_seconds"]
    assert decode_event(json.dumps(fields)) == STEP


def test_deeply_nested_json_is_malformed() -> None:
    with pytest.raises(MalformedEventError):
        decode_event("[" * 100_000)
