"""Row scanners, fed chunk by chunk, compared with the modules json and csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.files.text_rows import ArrayScanner, CsvScanner, LineScanner, Scanner, Spans
from tests.examples import examples


def scan(make: Callable[[Spans], Scanner], data: bytes, chunk: int) -> list[tuple[bytes, int]]:
    """Items and their lines that a scanner finds when it is fed ``chunk`` bytes at a time."""
    spans = Spans()
    scanner = make(spans)
    rest, offset = b"", 0
    while True:
        piece = data[offset : offset + chunk]
        base = offset - len(rest)
        offset += len(piece)
        fed = rest + piece
        rest = fed[scanner.feed(fed, base, offset >= len(data)) :]
        assert len(rest) <= 1
        if offset >= len(data):
            break
    return [(data[a:b], line) for a, b, line in zip(spans.starts, spans.ends, spans.lines, strict=True)]


def comma(spans: Spans) -> CsvScanner:
    return CsvScanner(spans, ",")


CHUNKS = st.integers(1, 9) | st.just(10_000)


@given(st.lists(st.sampled_from([b"a", b"{}", b" ", b"\t", b"\r", b"\n", b"\n\n", b"bc"]), max_size=30), CHUNKS)
def test_lines(pieces: list[bytes], chunk: int) -> None:
    data = b"".join(pieces)
    expected = [(line.lstrip(), number) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    assert scan(LineScanner, data, chunk) == expected


@settings(max_examples=examples(300))
@given(st.text('ab",\n', max_size=40), CHUNKS)
def test_csv_records_match_the_csv_module(text: str, chunk: int) -> None:
    found = scan(comma, text.encode(), chunk)
    parsed = [next(csv.reader(io.StringIO(record.decode(), newline=""))) for record, _ in found]
    assert parsed == [record for record in csv.reader(io.StringIO(text, newline="")) if record]


@given(st.lists(st.lists(st.text('a"\r\n,é', max_size=5), min_size=2, max_size=3), max_size=6), CHUNKS)
def test_what_the_csv_module_writes_comes_back(records: list[list[str]], chunk: int) -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows(records)
    found = scan(comma, written.getvalue().encode(), chunk)
    assert [next(csv.reader(io.StringIO(raw.decode(), newline=""))) for raw, _ in found] == records


_VALUES = st.recursive(
    st.none() | st.integers() | st.text('a"\\[]{},\n\x00é', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"\\]', max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=examples(300))
@given(st.lists(_VALUES, max_size=6), CHUNKS, st.sampled_from([None, 1]))
def test_array_elements(values: list[object], chunk: int, indent: int | None) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    assert [json.loads(raw) for raw, _ in scan(ArrayScanner, data, chunk)] == values


@given(st.binary(max_size=60) | st.text('[]{},"\\a\n', max_size=40).map(str.encode), CHUNKS)
def test_any_bytes_are_survived(data: bytes, chunk: int) -> None:
    makers: list[Callable[[Spans], Scanner]] = [LineScanner, comma, ArrayScanner]
    for make in makers:
        found = scan(make, data, chunk)
        assert found == scan(make, data, 10_000)
