"""Lines of files that may have any."""

from __future__ import annotations

import io
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runs.catalog.rows import read_totals
from core.runs.record import tail as lines_module
from core.runs.record.tail import Line, read_lines
from tests.core.runs.test_history import step


def read(path: Path, limit: int, begin: int = 0) -> list[Line]:
    with io.FileIO(path) as file:
        return list(read_lines(file, limit, begin))


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")), max_size=8), st.integers(1, 20),
       st.integers(1, 40), st.booleans())  # fmt: skip
def test_any_lines_in_any_blocks(pieces: list[bytes], limit: int, block: int, is_ended: bool) -> None:
    whole = b"\n".join(pieces) + (b"\n" if pieces and is_ended else b"")
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "_BLOCK", block)
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


def test_a_hole_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    before, after = b"first\n", b"end of the hole\nlast\n"
    with path.open("wb") as file:
        file.write(before)
        file.seek(1 << 40)
        file.write(after)
    tracemalloc.start()
    try:
        found = read(path, 1000)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert [line.data for line in found] == [b"first", bytes(1000), b"last"]
    assert [line.is_cut for line in found] == [False, True, False]
    assert [line.end for line in found] == [6, (1 << 40) + 16, (1 << 40) + len(after)]


def test_figures_of_a_record_with_a_hole_are_those_of_the_rest(tmp_path: Path) -> None:
    from core.runs.record.events import encode_event

    path = tmp_path / "events.jsonl"
    path.write_text("".join(encode_event(step(number)) for number in (1, 2)))
    size = path.stat().st_size
    os.truncate(path, 1 << 40)
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + encode_event(step(3)).encode())
    tracemalloc.start()
    try:
        found = read_totals(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(encode_event(step(3)).encode())
    assert found.tokens == read_totals(path).tokens != 0
