"""Compressed and columnar files, unpacked by a helper process."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data.files import unpack
from core.data.files.arrow_text import json_lines as arrow_lines
from core.data.files.reader import open_rows
from core.data.files.rows import NoRowsError, Row
from core.data.files.source import FileChangedError
from core.data.files.unpack import plain
from core.errors import UserError
from tests.core.data.sample_files import (
    descriptors,
    json_lines,
    pairs,
    read_rows,
    refusal,
    values,
    write,
    write_arrow,
    write_parquet,
    write_zstd,
)
from tests.examples import examples
from tests.short_list import long_but

ROWS = pairs(40)
TEXT = json_lines(ROWS).encode()
#: The same rows as an object of arrays.
COLUMNS = json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode()


def noise(count: int) -> bytes:
    """Rows that do not compress, so that a truncated file loses rows and not only its checksum."""
    return json_lines({"n": n, "s": os.urandom(60).hex()} for n in range(count)).encode()


def test_every_packing_holds_the_same_rows(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "a.parquet", ROWS)
    file = write_arrow(tmp_path / "a.arrow", ROWS, stream=False)
    paths = [
        *(table, file, write_arrow(tmp_path / "stream.arrow", ROWS, stream=True)),
        write(tmp_path / "a.jsonl.gz", gzip.compress(TEXT)),
        write(tmp_path / "members.jsonl.gz", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]) + b"\0" * 512),
        write(tmp_path / "named-wrong.jsonl", gzip.compress(TEXT)),
        write_zstd(tmp_path / "a.jsonl.zst", TEXT),
        write(tmp_path / "array.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        write(tmp_path / "lines.json.gz", gzip.compress(TEXT)),
        write(tmp_path / "columns.json.gz", gzip.compress(COLUMNS)),
        write_zstd(tmp_path / "columns.json.zst", COLUMNS),
        write(tmp_path / "a.parquet.gz", gzip.compress(table.read_bytes())),
        write_zstd(tmp_path / "a.parquet.zst", table.read_bytes()),
        write(tmp_path / "a.arrow.gz", gzip.compress(file.read_bytes())),
        write_zstd(tmp_path / "a.feather.zst", file.read_bytes()),
    ]
    for path in paths:
        with open_rows(path) as rows:
            rows.index()
            assert (rows.complete, rows.count_known, rows.size) == (True, 40, path.stat().st_size), path
            assert values(rows.rows(0, 99)) == ROWS, path


def test_what_is_inside_is_recognized_by_the_inner_ending(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv.gz", gzip.compress(b"\xef\xbb\xbfprompt;completion\r\nq;1,5\r\n"))
    with open_rows(table) as file:
        assert (file.kind, file.columns) == ("csv", ["prompt", "completion"])
        assert values(file.rows(0, 9)) == [{"prompt": "q", "completion": "1,5"}]
    text = write(tmp_path / "a.txt.gz", gzip.compress(b"one\n\ntwo\n"))
    assert values(read_rows(text)) == [{"text": "one"}, {"text": "two"}]


def test_values_without_a_counterpart_in_json_become_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    day = datetime.datetime(2024, 5, 6, 7, 8, 9)
    pq.write_table(pa.table({"when": [day], "image": [b"123"], "none": pa.nulls(1), "nested": [{"a": [1]}]}), path)
    assert values(read_rows(path)) == [
        {"when": "2024-05-06T07:08:09", "image": "<3 bytes>", "none": None, "nested": {"a": [1]}}
    ]


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    packed, table = gzip.compress(noise(30_000)), write_parquet(tmp_path / "whole.parquet", ROWS).read_bytes()
    frame = write_zstd(tmp_path / "whole.jsonl.zst", noise(30_000)).read_bytes()
    stream = write_arrow(tmp_path / "whole.arrow", ROWS, stream=True).read_bytes()
    assert "ends in the middle of its gzip data" in refusal(write(tmp_path / "a.gz.jsonl", packed[:-50_000])).message
    spoiled = packed[:1_000_000] + b"\xff" * 1000 + packed[1_001_000:]
    assert "is damaged" in refusal(write(tmp_path / "b.jsonl.gz", spoiled)).message
    assert "is damaged" in refusal(write(tmp_path / "c.jsonl.zst", frame[:-1000] + b"\xff" * 1000)).message
    assert "cannot be read as Parquet" in refusal(write(tmp_path / "d.parquet", table[: len(table) // 2])).message
    assert "cannot be read as Arrow" in refusal(write(tmp_path / "e.arrow", stream[: len(stream) // 2])).message
    assert "is not text" in refusal(write(tmp_path / "f.jsonl.gz", gzip.compress(bytes(5000)))).message
    assert "is empty inside" in refusal(write(tmp_path / "g.jsonl.gz", gzip.compress(b""))).message


def test_what_is_there_before_the_damage_can_be_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(noise(120_000), 1)[:-1_000_000])
    with open_rows(path) as file:
        assert (file.rows(0, 1)[0].data or {})["n"] == 0
        for _ in range(2):
            with pytest.raises(UserError, match="ends in the middle"):
                file.index()
        assert file.count_known > 512
        assert not file.complete
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert isinstance(refusal(tmp_path / "empty.parquet"), NoRowsError)


@pytest.mark.parametrize("filler", long_but([b"x"], [b"x", b"\n"]))
def test_a_bomb_is_stopped_before_it_fills_the_disk(tmp_path: Path, filler: bytes) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"n": 0}\n{"text": "')
        for _ in range(300):
            file.write(filler * (1 << 20))
    with pytest.raises(UserError, match="which no dataset does"), open_rows(path) as opened:
        opened.index()


@pytest.mark.long
def test_a_table_may_be_a_bomb_too(tmp_path: Path) -> None:
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 2000]))
    pq.write_table(pa.table({"text": rows}), tmp_path / "bomb.parquet")
    assert "which no dataset does" in refusal(tmp_path / "bomb.parquet").message


def test_only_so_much_is_unpacked_as_is_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(noise(300_000), 1))
    calls: list[tuple[int, int]] = []
    with open_rows(path) as file:
        assert file.count_known < 100_000
        assert not file.complete
        file.index(lambda done, total: calls.append((done, total)))
        assert file.count_known == 300_000
    assert calls == sorted(calls)
    assert calls[-1] == (path.stat().st_size,) * 2


def test_closing_ends_the_index_and_leaves_nothing(tmp_path: Path, private_home: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(noise(200_000), 1))
    file = open_rows(path)
    reached = threading.Event()

    def report(done: int, total: int) -> None:
        reached.set()

    thread = threading.Thread(target=file.index, args=(report,))
    thread.start()
    assert reached.wait(60)
    file.close()
    thread.join(60)
    assert not thread.is_alive()
    file.close()
    del file, thread
    assert descriptors(tmp_path) == descriptors(private_home) == []
    assert [entry for entry in (private_home / "cache").rglob("*") if entry.is_file()] == []


def test_the_end_of_the_helper_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(noise(300_000), 1))
    with open_rows(path) as file:
        helper = file._bytes._helper  # type: ignore[attr-defined]
        helper.process.kill()
        helper.process.wait()
        with pytest.raises(UserError, match=r"^The reader of .* failed: its process was ended by SIGKILL"):
            file.index()


def test_a_packed_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(TEXT))
    with open_rows(path) as file:
        path.write_bytes(gzip.compress(TEXT + TEXT))
        with pytest.raises(FileChangedError, match=r"has changed|has become shorter"):
            file.rows(0, 1)


def test_json_object_of_arrays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps({"prompt": ["q1", "q2"], "completion": ["a1", "a2"]}))
    assert values(read_rows(path)) == [{"prompt": "q1", "completion": "a1"}, {"prompt": "q2", "completion": "a2"}]
    uneven = write(tmp_path / "b.json", json.dumps({"prompt": ["q1", "q2"], "completion": ["a1"]}, indent=1))
    assert "columns of different lengths, from 1 to 2 rows" in refusal(uneven).message
    mixed = write(tmp_path / "c.json", json.dumps({"prompt": ["q1"], "name": "x"}))
    assert "not all of its values are arrays" in refusal(mixed).message


def test_the_interface_stays_without_numpy(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    code = (
        "import sys; from pathlib import Path; from core.data.registries.resolve import single_source\n"
        f"with single_source({str(path)!r}).open() as file: assert len(file.rows(0, 9)) == 9\n"
        "print([name for name in ('numpy', 'pyarrow', 'datasets', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=20), st.booleans())
def test_gzip_of_any_bytes_comes_out_or_is_refused(
    tmp_path: Path, content: bytes, place: int, spoil: bytes, spoiled: bool
) -> None:
    packed = gzip.compress(content)
    if spoiled:
        packed = packed[:place] + spoil + packed[place + len(spoil) :]
    path = write(tmp_path / "x.gz", packed)
    pieces: list[bytes] = []
    refused = ""
    with path.open("rb") as file:
        try:
            pieces.extend(piece for piece, _ in unpack.portions("gzip", file))
        except unpack.UnpackError as error:
            refused = str(error)
    assert refused or spoiled or b"".join(pieces) == content


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=40), st.sampled_from(["parquet", "arrow"]))
def test_a_spoiled_table_is_read_or_refused(tmp_path: Path, place: int, spoil: bytes, packing: str) -> None:
    whole = tmp_path / f"whole.{packing}"
    if not whole.exists():
        write_parquet(whole, ROWS) if packing == "parquet" else write_arrow(whole, ROWS, stream=True)
    raw = whole.read_bytes()
    place %= len(raw)
    path = write(tmp_path / f"x.{packing}", raw[:place] + spoil + raw[place + len(spoil) :])
    found: list[Row] = []
    hint = ""
    try:
        found += read_rows(path)
    except UserError as error:
        hint = error.hint
    assert found or hint


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
def test_the_lines_match_the_rows(data: st.DataObject, typed: list[Typed]) -> None:
    count = data.draw(st.integers(0, 6))
    columns = [
        pa.array(data.draw(st.lists(_maybe(values), min_size=count, max_size=count)), type=kind)
        for kind, values in typed
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=[f'c{place} "\\\n' for place in range(len(columns))])
    assert arrow_lines(batch, plain) == _by_rows(batch)
    # A part of a batch shares its memory.
    start = data.draw(st.integers(0, count))
    part = batch.slice(start, data.draw(st.integers(0, count - start)))
    assert arrow_lines(part, plain) == _by_rows(part)


def test_fields_of_the_same_name_are_refused_as_in_rows() -> None:
    twins = pa.StructArray.from_arrays([pa.array([1]), pa.array(["x"])], names=["a", "a"])
    batch = pa.RecordBatch.from_arrays([twins], names=["s"])
    with pytest.raises(ValueError, match="duplicate"):
        batch.to_pylist()
    with pytest.raises(ValueError, match="duplicate"):
        arrow_lines(batch, plain)


@pytest.mark.parametrize("rest", [b"a\xff", b"a\r\xff"])
def test_bytes_that_are_no_text_spoil_their_row_alone(rest: bytes) -> None:
    texts = pa.array([b"good", rest, None, b'"'], pa.binary()).view(pa.string())
    lines = arrow_lines(pa.RecordBatch.from_arrays([texts], names=["t"]), plain).split(b"\n")
    assert [lines[0], *lines[2:]] == [b'{"t": "good"}', b'{"t": null}', b'{"t": "\\""}', b""]
    assert lines[1] == b'{"t": "%s"}' % rest.replace(b"\r", b"\\r")
