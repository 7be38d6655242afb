"""Hypothesis strategies for events."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from core.runs.record import events
from core.runs.record.events import TIME_LIMIT

_TEXT = st.text(st.characters(), max_size=30)
_SCALAR = st.one_of(st.none(), st.integers(-(2**63), 2**63), _TEXT, st.floats(allow_nan=False, allow_infinity=False))
#: An object with lists of values, and of objects such as the processes of a device.
_OBJECT = st.dictionaries(
    _TEXT,
    _SCALAR | st.lists(_SCALAR, max_size=2) | st.lists(st.dictionaries(_TEXT, _SCALAR, max_size=2), max_size=2),
    max_size=3,
)
_BY_ANNOTATION: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63),
    "float": st.floats(),
    "t": st.floats(-TIME_LIMIT, TIME_LIMIT),
    "str": _TEXT,
    "bool": st.booleans(),
    "dict[str, int]": st.dictionaries(_TEXT, st.integers(0, 2**40), max_size=3),
    "dict[str, Any]": _OBJECT,
    "list[dict[str, Any]]": st.lists(_OBJECT, max_size=2),
}


def _field(annotation: str) -> st.SearchStrategy[Any]:
    strategy = _BY_ANNOTATION[annotation.removesuffix(" | None")]
    return st.none() | strategy if annotation.endswith(" | None") else strategy


def _of(kind: type[events.Event]) -> st.SearchStrategy[events.Event]:
    return st.builds(
        kind, **{item.name: _field("t" if item.name == "t" else str(item.type)) for item in dataclasses.fields(kind)}
    )


EVENTS: st.SearchStrategy[events.Event] = st.one_of([_of(kind) for kind in events._TYPES.values()])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)

#: JSON that no worker writes, as the text that stands in a line.
HOSTILE_VALUES = [
    *Path(__file__).with_name("hostile_values.txt").read_text(encoding="utf-8").splitlines(),
    *("9" * 400, "-" + "9" * 400, "9" * 5000, f'"{"x" * 5000}"', f'"{"w" * 300}.w = 1"', "[" * 300 + "]" * 300),
    *('{"a":' * 300 + "1" + "}" * 300, f'{{"x": {"9" * 400}}}', f'{{"{"k" * 5000}": 1}}'),
    f'[{{"index": {"9" * 400}, "kind": "cuda", "name": "n"}}]',
    f'[{{"index": 1, "kind": "cuda", "name": "\\u009b[/x]", "memory_used": {2**63}, "memory_total": 1, "clock": 1e300,'
    f' "temperature_c": -1e300, "power_w": {"9" * 400}, "fan": "NaN", "throttle_reasons": [{{}}, [[]], "a", 5]}}]',
]
_USUAL = {
    "int": ["1", "2", "3", "7"],
    "float": ["0.5", "1.0", "2.5"],
    "str": ['"cpu"', '"training"', '"importing"', '"x"'],
    "bool": ["true", "false"],
    "dict[str, int]": ['{"a": 1}'],
    "dict[str, Any]": ['{"a": 1}'],
    "list[dict[str, Any]]": ['[{"index": 0, "kind": "cpu", "name": "c", "memory_used": 5, "memory_total": 9}]'],
}


@st.composite
def _hostile_event(draw: st.DrawFn) -> bytes:
    """An event with some values that make no sense, and now and then a key twice or not at all."""
    kind = draw(st.sampled_from(sorted(events._TYPES)))
    fields = [f'"type": "{kind}"']
    for item in dataclasses.fields(events._TYPES[kind]):
        usual = _USUAL[str(item.type).removesuffix(" | None")]
        for _ in range(draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 1, 2, 0]))):
            value = draw(st.sampled_from(HOSTILE_VALUES if draw(st.integers(0, 3)) == 0 else usual))
            fields.append(f'"{events._FILE_NAMES.get(item.name, item.name)}": {value}')
    return ("{" + ", ".join(fields) + "}").encode()


#: Lines of an ``events.jsonl`` of anybody's.
HOSTILE_LINES: st.SearchStrategy[bytes] = st.one_of(
    *[_hostile_event()] * 6,
    EVENTS.map(lambda event: events.encode_event(event).strip().encode()),
    st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")),
    st.sampled_from(
        [b"[" * 50_000, b'{"a":' * 50_000, b"\0" * 100, b"{" + b'"t": 1, ' * 1000, b'{"type": 5}', b"\xff"]
    ),
)
