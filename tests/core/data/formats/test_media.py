"""Rows with pictures, video or sound: refused in every format, and no row without them is."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.conversation import RowError
from core.data.files.rows import Row
from core.data.formats.detect import detect, row_example
from core.data.formats.mapping import ColumnMap
from core.data.formats.media import is_filled
from core.data.registries.resolve import single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from tests.cases import cases
from tests.core.data.registries.test_axolotl import axolotl
from tests.core.data.registries.test_resolve import entry
from tests.core.data.sample_files import json_lines, read_rows, write, write_arrow, write_parquet
from tests.examples import examples

ANSWER = {"role": "assistant", "content": "A cat."}
TALK = [{"role": "user", "content": "<image>What is this?"}, ANSWER]
PLAIN = [{"role": "user", "content": "What is this?"}, ANSWER]
PAIR = {"prompt": "What is this?", "completion": "A cat."}
CASES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("media.yaml").read_text(encoding="utf-8"))


def asked(content: Any, **more: Any) -> list[Any]:
    return [{"role": "user", "content": content, **more}, ANSWER]


def refused(data: dict[str, Any], columns: ColumnMap | None = None) -> RowError | None:
    """The reason why a row is not used; None if it is."""
    row = Row(0, 1, data)
    found = columns.format if columns is not None else detect([row]).format
    try:
        row_example(row, found, columns)
    except RowError as error:
        return error
    return None


@cases(("data", "words"), [(case["row"], case["words"]) for case in CASES["refused"]])
def test_rows_with_more_than_text_are_refused(data: dict[str, Any], words: str) -> None:
    error = refused(data)
    assert error is not None
    assert error.code == "has_media"
    assert words in error.message
    assert error.message.endswith("only text is read.")


@cases("data", CASES["read"])
def test_rows_of_text_are_read(data: dict[str, Any]) -> None:
    assert refused(data) is None


@cases(
    ("columns", "data", "is_refused"),
    [(case["columns"], case["row"], case["refused"]) for case in CASES["columns"]],
)
def test_columns_that_are_named(columns: dict[Any, str], data: dict[str, Any], is_refused: bool) -> None:
    assert (refused(data, ColumnMap(columns)) is not None) == is_refused


def reasons(source: DataSource) -> list[str]:
    """Code of the reason for each row of a source; empty for a used row."""
    rows = list(source.rows())
    detection = source.detect(rows)
    codes = []
    for row in rows:
        try:
            detection.example(row)
            codes.append("")
        except RowError as error:
            codes.append(error.code)
    return codes


def test_entries_of_llama_factory_name_the_columns_of_pictures(tmp_path: Path) -> None:
    columns = {"messages": "messages", "images": "shown"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    values = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
    rows: list[dict[str, Any]] = [
        {"messages": TALK, "shown": ["a.png"]},
        {"messages": PLAIN, "shown": []},
        {"messages": TALK, "shown": []},
    ]
    assert reasons(entry(tmp_path, values, *rows)) == ["has_media", "", "has_media"]
    alpaca = {"file_name": "rows.jsonl", "columns": {"prompt": "q", "response": "a", "audios": "heard"}}
    assert reasons(entry(tmp_path, alpaca, {"q": "Who?", "a": "Rain.", "heard": "a.wav"})) == ["has_media"]
    # As an entry that names none, whose rows have some all the same.
    plain = {"file_name": "rows.jsonl", "columns": {"prompt": "q", "response": "a"}}
    assert reasons(entry(tmp_path, plain, {"q": "Who?", "a": "Rain.", "videos": ["a"]})) == ["has_media"]


@cases(("kind", "row"), CASES["axolotl"])
def test_entries_of_axolotl(kind: dict[str, Any], row: dict[str, Any], tmp_path: Path) -> None:
    assert reasons(axolotl(tmp_path, kind, row)) == ["has_media"]


def test_tables_and_packed_files(tmp_path: Path) -> None:
    """Bytes, structs and JSON as text, beside rows that have none of it."""
    tables: list[dict[str, Any]] = [
        {"messages": TALK, "images": [{"bytes": b"\x89PNG", "path": "a.png"}], "page": None},
        {"messages": PLAIN, "images": [], "page": {"bytes": None, "path": None}},
        {"messages": PLAIN, "images": None, "page": {"bytes": b"\x89PNG", "path": None}},
    ]
    found = ["has_media", "", "has_media"]
    assert reasons(single_source(str(write_parquet(tmp_path / "a.parquet", tables)))) == found
    assert reasons(single_source(str(write_arrow(tmp_path / "b.arrow", tables, stream=True)))) == found
    table = io.StringIO()
    writer = csv.DictWriter(table, ["question", "answer", "image"])
    writer.writeheader()
    writer.writerows({"question": "What?", "answer": "A.", "image": value} for value in ("a.png", "", '["b.png"]'))
    packed = tmp_path / "c.csv.gz"
    packed.write_bytes(gzip.compress(table.getvalue().encode()))
    assert reasons(single_source(str(packed))) == found
    lines = write(tmp_path / "d.jsonl", json_lines([{**row, "page": None, "images": []} for row in tables]))
    assert [row.code for row in read_rows(lines)] == [""] * 3
    assert reasons(single_source(str(lines))) == ["has_media", "", ""]


@settings(max_examples=examples(200))
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=12,
    )
)
def test_any_value_is_filled_or_not(value: Any) -> None:
    assert is_filled([value]) is (is_filled(value) or type(value) in (int, float, bool))
    for data in ({"messages": PLAIN, "images": value}, {**PAIR, "doc": value}):
        error = refused(data)
        assert error is None or error.code == "has_media"
    with contextlib.suppress(UserError):  # of no known format
        refused({"messages": asked(value, image=value)})


def test_a_value_nested_as_deeply_as_can_be_read_is_looked_at() -> None:
    value: Any = "a.png"
    for _ in range(100_000):
        value = [value]
    assert is_filled(value)
    assert is_filled("[" * 5000)
    while isinstance(value, list):
        value = value[0]  # taken apart here, as the interpreter would recurse
