"""Arrow tables to JSON Lines: byte for byte the output of ``json.dumps``."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.files.arrow_text import json_lines
from core.data.files.unpack import plain
from tests.examples import examples

Typed = tuple[pa.DataType, st.SearchStrategy[Any]]

_WORDS = st.one_of(
    st.text(max_size=8), st.sampled_from(['"', "\\", "\n", "\\n", "\t", "\r", "\x00", "\x1f", "\x7f", "é\u2028"])
)
_LEAVES: list[Typed] = [
    (pa.string(), _WORDS),
    (pa.large_string(), _WORDS),
    (pa.string_view(), _WORDS),
    (pa.dictionary(pa.int32(), pa.string()), _WORDS),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int8(), st.integers(-128, 127)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.binary(), st.binary(max_size=4)),
    (pa.timestamp("us"), st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1))),
    (
        pa.map_(pa.string(), pa.int8()),
        st.dictionaries(_WORDS, st.integers(0, 9), max_size=2).map(lambda d: [*d.items()]),
    ),
]


def _nested(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    def lists(typed: Typed) -> st.SearchStrategy[Typed]:
        kind, values = typed
        many = st.lists(_maybe(values), max_size=3)
        pairs = st.lists(_maybe(values), min_size=2, max_size=2)
        return st.sampled_from([(pa.list_(kind), many), (pa.large_list(kind), many), (pa.list_(kind, 2), pairs)])

    def structs(typed: list[Typed]) -> Typed:
        names = ['a"', "b", "ä"][: len(typed)]
        fields = [pa.field(name, kind) for name, (kind, _) in zip(names, typed, strict=True)]
        columns = {name: _maybe(values) for name, (_, values) in zip(names, typed, strict=True)}
        return pa.struct(fields), st.fixed_dictionaries(columns)

    return st.one_of(inner.flatmap(lists), st.lists(inner, max_size=3).map(structs))


def _maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


def _by_rows(batch: pa.RecordBatch) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, default=plain) + "\n" for row in batch.to_pylist()).encode()


@settings(max_examples=examples(300), deadline=None)
@given(st.data(), st.lists(st.recursive(st.sampled_from(_LEAVES), _nested, max_leaves=4), min_size=1, max_size=3))
def test_the_lines_are_those_of_the_rows(data: st.DataObject, typed: list[Typed]) -> None:
    count = data.draw(st.integers(0, 6))
    columns = [
        pa.array(data.draw(st.lists(_maybe(values), min_size=count, max_size=count)), type=kind)
        for kind, values in typed
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=[f"c{place}" for place in range(len(columns))])
    assert json_lines(batch, plain) == _by_rows(batch)
    # A part of a batch shares its memory.
    start = data.draw(st.integers(0, count))
    part = batch.slice(start, data.draw(st.integers(0, count - start)))
    assert json_lines(part, plain) == _by_rows(part)


def test_a_name_is_written_as_a_value_is() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1])], names=['say "a\\b"\n'])
    assert json_lines(batch, plain) == b'{"say \\"a\\\\b\\"\\n": 1}\n'


def test_fields_of_the_same_name_are_refused_as_in_rows() -> None:
    twins = pa.StructArray.from_arrays([pa.array([1]), pa.array(["x"])], names=["a", "a"])
    batch = pa.RecordBatch.from_arrays([twins], names=["s"])
    with pytest.raises(ValueError, match="duplicate"):
        batch.to_pylist()
    with pytest.raises(ValueError, match="duplicate"):
        json_lines(batch, plain)


@pytest.mark.parametrize("rest", [b"a\xff", b"a\r\xff"])
def test_bytes_that_are_no_text_spoil_their_row_alone(rest: bytes) -> None:
    texts = pa.array([b"good", rest, None, b'"'], pa.binary()).view(pa.string())
    lines = json_lines(pa.RecordBatch.from_arrays([texts], names=["t"]), plain).split(b"\n")
    assert [lines[0], *lines[2:]] == [b'{"t": "good"}', b'{"t": null}', b'{"t": "\\""}', b""]
    assert lines[1] == b'{"t": "%s"}' % rest.replace(b"\r", b"\\r")
