from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.runs.record import events
from core.runs.record.events import MalformedEventError, decode_event, encode_event
from tests.cases import cases
from tests.core.runs.event_strategies import EVENTS, JSON
from tests.core.runs.helpers import step_event

STEP = step_event(1)


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


def test_the_sender_of_a_command_is_called_from_and_readable_text_is_written_as_it_is() -> None:
    line = encode_event(events.ControlEvent(t=1.0, command="stop", sender="größer 大", result="ok"))
    assert line == '{"t": 1.0, "type": "control", "command": "stop", "from": "größer 大", "result": "ok"}\n'


def read(line: bytes | str) -> events.Event | None:
    """The event of a line, which can be written and read again; None where it is malformed or of an unknown type."""
    try:
        event = decode_event(line)
    except MalformedEventError:
        return None
    if event is not None:
        again = encode_event(event)
        assert len(again) < events.LINE_LIMIT
        assert repr(decode_event(again)) == repr(event)
    return event


@given(st.binary(max_size=200) | st.binary(max_size=20).map(lambda noise: encode_event(STEP).encode() + noise))
@example(encode_event(STEP).encode() + b"\x0b")
def test_bytes_are_an_event_or_malformed(data: bytes) -> None:
    event = read(data)
    if event is not None:
        assert json.loads(data)["type"] == "step", "noise behind a line is no part of it"
        assert event == STEP
    if data.strip() and not data.strip().startswith(b"{"):
        assert event is None


@given(JSON, st.sampled_from(sorted(events._TYPES)), st.integers(0, 20))
def test_json_of_any_shape_is_an_event_or_malformed(value: object, kind: str, position: int) -> None:
    fields = [events._FILE_NAMES.get(item.name, item.name) for item in dataclasses.fields(events._TYPES[kind])]
    broken = {**json.loads(encode_event(STEP)), "type": kind, fields[position % len(fields)]: value}
    for candidate in (value, broken):
        event = read(json.dumps(candidate))
        if event is not None:
            assert isinstance(candidate, dict)
            assert type(event) is events._TYPES[candidate["type"]]
            for item in dataclasses.fields(event):
                given_ = candidate.get(events._FILE_NAMES.get(item.name, item.name))
                if item.type in ("int", "bool", "str") and given_ is not None:
                    assert type(getattr(event, item.name)) is type(given_), item.name


DATA = events.DataEvent(rows=1, used=1, dropped={}, tokens=1, supervised_tokens=1, longest=1)
HARDWARE = events.HardwareEvent(devices=[])


@cases(
    ("event", "change"),
    [
        *((STEP, {name: None}) for name in ("t", "type", "step", "loss")),
        *((STEP, {"loss": value}) for value in ("2.0", True, 10**400)),
        *((STEP, {"step": value}) for value in (1.5, True)),
        (STEP, {"t": "now"}),
        (STEP, {"lr": {}}),
        (DATA, {"dropped": {"long": "many"}}),
        (DATA, {"dropped": []}),
        (HARDWARE, {"devices": ["gpu"]}),
        (HARDWARE, {"devices": [{"a": 1}, 5]}),
        (HARDWARE, {"devices": [{}] * 300}),
    ],
)
@cases("is_missing", [True, False])
def test_a_wrong_or_missing_field_is_refused(event: events.Event, change: dict[str, object], is_missing: bool) -> None:
    fields = {**json.loads(encode_event(event)), **change}
    if is_missing:
        fields.pop(next(iter(change)))
    with pytest.raises(MalformedEventError):
        decode_event(json.dumps(fields))


def test_unknown_types_and_fields_and_absent_optional_ones_are_tolerated() -> None:
    assert decode_event('{"t": 1, "type": "from-the-future", "x": 1}') is None
    fields = {**json.loads(encode_event(STEP)), "invented": [1], "loss": 1}
    del fields["paused_seconds"]
    assert decode_event(json.dumps(fields)) == STEP


@cases("value", [2**63 + 1, -(2**63) - 1, 10**400, 10**4299])
def test_an_integer_of_more_than_64_bits_is_no_number(value: int) -> None:
    fields = json.loads(encode_event(STEP))
    for name in ("step", "tokens", "loss"):
        with pytest.raises(MalformedEventError):
            decode_event(json.dumps({**fields, name: value}))
    found = decode_event(json.dumps({**fields, "step": 2**63, "tokens": -(2**63)}))
    assert found == dataclasses.replace(STEP, step=2**63, tokens=-(2**63))


@cases("moment", ["NaN", "Infinity", 1e12, -1e300, 10**18])
def test_what_happened_at_no_time_is_reported_all_the_same(moment: object) -> None:
    found = decode_event(json.dumps({**json.loads(encode_event(STEP)), "t": moment}))
    assert repr(found) == repr(dataclasses.replace(STEP, t=math.nan))


def test_texts_and_lists_have_an_end() -> None:
    sample = events.SampleEvent(t=1.0, step=1, prompt="p" * 60_000, text="\ud800" * 60_000, source="s" * 60_000)
    line = encode_event(sample)
    assert len(line) < events.LINE_LIMIT
    cut: dict[str, Any] = {"prompt": "p" * 49_999 + "…", "text": "\ud800" * 49_999 + "…", "source": "s" * 3999 + "…"}
    raw = json.dumps({"type": "sample", **dataclasses.asdict(sample)})
    for found in (decode_event(line), decode_event(raw)):
        assert found == dataclasses.replace(sample, **cut)


def test_nothing_is_nested_in_a_device() -> None:
    nested: object = 1
    for _ in range(200):
        nested = [nested]
    device = {"index": 0, "deep": nested, "object": {"a": 1}, "huge": 10**400, "list": ["a", [1], {}, 2], "k" * 500: 1}
    found = decode_event(json.dumps({"t": 1, "type": "hardware", "devices": [device]}))
    assert isinstance(found, events.HardwareEvent)
    (read,) = found.devices
    assert read == {"index": 0, "deep": [], "object": None, "huge": None, "list": ["a", {}, 2], "k" * 200: 1}
    assert decode_event(encode_event(found)) == found


def test_a_value_that_nobody_can_write_out_is_malformed() -> None:
    for depth in (*range(700, 990), 100_000):
        with pytest.raises(MalformedEventError):
            decode_event('{"t": 1, "type": "phase", "name": ' + "[" * depth + "]" * depth + "}")
