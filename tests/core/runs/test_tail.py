from __future__ import annotations

import io
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runs.record import tail as tail_module
from core.runs.record.events import Event, FinishedEvent, NoticeEvent, StepEvent, encode_event
from core.runs.record.state import EventTail, Line, last_events, read_lines
from tests.cases import cases
from tests.core.runs.event_strategies import EVENTS

GARBAGE = st.sampled_from([b"not json", b'{"t": 1}', b"\xff\xfe", b'{"t": 1, "type": "step"}', b'{"t": 1', b"[]"])
UNKNOWN = b'{"t": 1, "type": "from-the-future"}'


def notice(message: str) -> Event:
    return NoticeEvent(t=1.0, level="info", code="x", message=message)


@given(
    st.lists(EVENTS | GARBAGE | st.sampled_from([UNKNOWN, b"", b"  "]), max_size=8),
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
    st.sampled_from([b"", b'{"t": 1, "type": "no', b"garbage"]),
    st.sampled_from([1, 200, tail_module.CHUNK_BYTES]),
)
def test_any_cuts_read_as_whole(pieces: list[Event | bytes], cuts: list[int], unfinished: bytes, limit: int) -> None:
    whole = b"".join(p + b"\n" if isinstance(p, bytes) else encode_event(p).encode() for p in pieces) + unfinished
    found: list[Event] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "events.jsonl")
        tail = EventTail(path)
        assert tail.poll() == []
        with path.open("wb", buffering=0) as file:
            position = 0
            while position < len(whole):
                length = cuts[position % len(cuts)]
                file.write(whole[position : position + length])
                position += length
                found += tail.poll(limit)
        found += tail.read_all()
    events = [piece for piece in pieces if not isinstance(piece, bytes)]
    assert repr(found) == repr(events)
    assert tail.skipped == sum(isinstance(p, bytes) and bool(p.strip()) and p != UNKNOWN for p in pieces)


def test_a_replaced_and_a_shortened_file_are_read_from_their_start(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    path.write_text(encode_event(notice("one")) + encode_event(notice("two")))
    assert len(tail.read_all()) == 2
    other = tmp_path / "other"
    other.write_text(encode_event(notice("three")) + encode_event(notice("four")) + encode_event(notice("five")))
    other.rename(path)
    assert [event.message for event in tail.read_all() if isinstance(event, NoticeEvent)] == ["three", "four", "five"]
    path.write_text(encode_event(notice("six")))
    assert [event.message for event in tail.read_all() if isinstance(event, NoticeEvent)] == ["six"]


@cases("cut", [1, 37, 10_000])
def test_an_endless_line_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(tail_module, "LINE_LIMIT", 500)
    path = tmp_path / "events.jsonl"
    whole = encode_event(notice("before")).encode() + b"x" * 1203 + b"\n" + encode_event(notice("after")).encode()
    tail, found = EventTail(path), list[Event]()
    with path.open("wb", buffering=0) as file:
        for position in range(0, len(whole), cut):
            file.write(whole[position : position + cut])
            found += tail.poll()
            assert len(tail._rest) <= 500
    assert [event.message for event in found if isinstance(event, NoticeEvent)] == ["before", "after"]
    assert tail.skipped == 1


def test_a_reader_begins_again_where_another_stopped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventTail(path)
    second = encode_event(notice("two"))
    path.write_text(encode_event(notice("one")) + second[:10])
    assert first.poll() == [notice("one")]
    with path.open("a") as file:
        file.write(second[10:])
    # Half of a line has been read, and does not count.
    assert EventTail(path, first.offset).read_all() == [notice("two")]
    assert EventTail(path, path.stat().st_size).read_all() == []
    path.write_text(encode_event(notice("new")))
    assert EventTail(path, 10_000).read_all() == [notice("new")]


@given(st.lists(EVENTS | GARBAGE, max_size=8), st.integers(1, 400), st.integers(1, 3000), st.booleans())
def test_a_file_reads_backwards_alike(pieces: list[Event | bytes], chunk: int, limit: int, unfinished: bool) -> None:
    lines = [p + b"\n" if isinstance(p, bytes) else encode_event(p).encode() for p in pieces]
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_module, "_END_BYTES", chunk)
        path = Path(directory, "events.jsonl")
        path.write_bytes(b"".join(lines) + (b'{"t": 1, "type": "no' if unfinished else b""))
        whole = list(reversed(EventTail(path).read_all()))
        assert repr(list(last_events(path, Event, 1 << 20))) == repr(whole)
        searched = list(last_events(path, Event, limit))
        assert repr(searched) == repr(whole[: len(searched)])
        for kind in (StepEvent, NoticeEvent, FinishedEvent):
            found = list(last_events(path, kind, 1 << 20))
            assert repr(found) == repr([event for event in whole if type(event) is kind])


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The test may take some megabytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("little_memory")
def test_a_hole_of_a_terabyte_is_passed_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(encode_event(notice("before")).encode())
    os.truncate(path, 1 << 40)
    tail = EventTail(path)
    assert not tail.is_behind
    polls = 0
    while tail.is_behind or not polls:
        tail.poll()
        polls += 1
        assert polls < 20
    assert list(last_events(path, Event, 16 << 20)) == []
    with path.open("ab") as file:
        file.write(b"its end\n" + encode_event(notice("after")).encode())
    assert tail.read_all() == [notice("after")]
    assert tail.skipped == 1
    assert EventTail(path).read_all() == [notice("before"), notice("after")]


def read(path: Path, limit: int, begin: int = 0) -> list[Line]:
    with io.FileIO(path) as file:
        return list(read_lines(file, limit, begin))


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")), max_size=8), st.integers(1, 20),
       st.integers(1, 40), st.booleans())  # fmt: skip
def test_any_lines_in_any_blocks(pieces: list[bytes], limit: int, block: int, is_ended: bool) -> None:
    whole = b"\n".join(pieces) + (b"\n" if pieces and is_ended else b"")
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_module, "_BLOCK", block)
        path = Path(directory, "a")
        path.write_bytes(whole)
        found = read(path, limit)
        expected = io.BytesIO(whole).readlines()
        assert [line.data for line in found] == [line.removesuffix(b"\n")[:limit] for line in expected]
        assert [line.is_ended for line in found] == [line.endswith(b"\n") for line in expected]
        assert [line.is_cut for line in found] == [len(line.removesuffix(b"\n")) > limit for line in expected]
        ends = [sum(map(len, expected[: number + 1])) for number in range(len(expected))]
        assert [line.end for line in found] == ends
        if len(found) > 1:
            assert read(path, limit, found[0].end) == found[1:]


@pytest.mark.usefixtures("little_memory")
def test_a_hole_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before, after = b"first\n", b"end of the hole\nlast\n"
    with path.open("wb") as file:
        file.write(before)
        file.seek(1 << 40)
        file.write(after)
    found = read(path, 1000)
    assert [line.data for line in found] == [b"first", bytes(1000), b"last"]
    assert [line.is_cut for line in found] == [False, True, False]
    assert [line.end for line in found] == [6, (1 << 40) + 16, (1 << 40) + len(after)]
