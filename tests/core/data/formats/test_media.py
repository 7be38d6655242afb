"""Rows with pictures, video or sound: refused in every format, and no row without them is."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.conversation import RowError
from core.data.files.reader import read_rows
from core.data.files.rows import Row
from core.data.formats.detect import detect, row_example
from core.data.formats.mapping import ColumnMap
from core.data.formats.media import find_placeholders, is_filled
from core.data.registries.resolve import single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from tests.cases import cases
from tests.core.data.registries.test_axolotl import axolotl
from tests.core.data.registries.test_resolve import entry
from tests.core.data.sample_files import json_lines, write, write_arrow, write_parquet
from tests.examples import examples

ANSWER = {"role": "assistant", "content": "A cat."}
TALK = [{"role": "user", "content": "<image>What is this?"}, ANSWER]
PLAIN = [{"role": "user", "content": "What is this?"}, ANSWER]
SHARED = [{"from": "human", "value": "What do you hear?"}, {"from": "gpt", "value": "Rain."}]
PAIR = {"prompt": "What is this?", "completion": "A cat."}
PIXELS = [[[0.0, 0.5], [1.0, 0.25]]]


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


@cases(
    ("data", "words"),
    [
        ({"messages": TALK, "images": ["a.png"]}, "The column images holds pictures, and only text is read."),
        ({"messages": PLAIN, "image": "a.png"}, "The column image holds pictures"),
        ({"messages": PLAIN, "Images ": ["a.png"]}, "holds pictures"),
        ({"messages": PLAIN, "pixel_values": PIXELS}, "pixel_values holds pictures"),
        ({"conversations": SHARED, "audios": ["rain.wav"]}, "audios holds sound"),
        ({"conversations": SHARED, "audio": {"bytes": "<9 bytes>", "path": None}}, "audio holds sound"),
        ({"instruction": "Describe.", "input": "", "output": "A cat.", "video": "cat.mp4"}, "video holds video"),
        ({**PAIR, "images": '["a.png"]'}, "images holds pictures"),
        ({**PAIR, "images": [{"bytes": None, "path": "a.png"}]}, "images holds pictures"),
        ({**PAIR, "photo": {"bytes": "<9 bytes>", "path": "a.png"}}, "photo holds pictures"),
        ({**PAIR, "doc": [{"bytes": "aGk=", "path": None}]}, "doc holds pictures or sound"),
        ({**PAIR, "call": {"array": [0.1, 0.0], "path": None, "sampling_rate": 16000}}, "call holds pictures or sound"),
        ({"prompt": "Which?", "chosen": "A.", "rejected": "B.", "images": ["a.png"]}, "images holds"),
        ({**PAIR, "label": True, "videos": ["a.mp4"]}, "videos holds video"),
        ({"text": "A caption of a cat.", "image": {"bytes": "<9 bytes>", "path": None}}, "image holds pictures"),
        ({"input_ids": [1, 2, 3], "pixel_values": PIXELS}, "pixel_values holds"),
        ({"segments": [{"text": "a", "label": True}], "audio": "a.wav"}, "audio holds sound"),
        # Parts of a content: OpenAI, TRL, Axolotl, LLaMA-Factory, Qwen.
        (
            {"messages": asked([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "u"}}])},
            "Part 2 of message 1 is of type image_url; only text is read.",
        ),
        ({"messages": asked([{"type": "image"}, {"type": "text", "text": "What?"}])}, "Part 1 of message 1"),
        ({"messages": asked([{"type": "video", "path": "a.mp4"}])}, "is of type video"),
        ({"messages": asked([{"type": "audio_url", "value": "a.wav"}])}, "is of type audio_url"),
        ({"messages": asked([{"type": "input_audio", "input_audio": {"data": "UklG"}}])}, "of type input_audio"),
        ({"messages": asked([{"image": "a.png"}, {"text": "What?"}])}, "Part 1 of message 1 has image"),
        (
            {"messages": asked([{"type": "text", "text": "What?", "image": {"bytes": "<9 bytes>", "path": None}}])},
            "has image",
        ),
        ({"messages": json.dumps(asked([{"type": "image", "path": "a.png"}]))}, "is of type image"),
        ({"prompt": asked([{"type": "image"}])[:1], "completion": [ANSWER]}, "is of type image"),
        (
            {"prompt": asked("Which?")[:1], "chosen": [ANSWER], "rejected": asked([{"type": "image"}])[:1]},
            "is of type image",
        ),
        # A key of a message: Ollama, ms-swift.
        ({"messages": asked("What is this?", images=["iVBORw0"])}, "Message 1 has images; only text is read."),
        ({"conversation": [{"human": "What?", "assistant": "A cat.", "image": "a.png"}]}, "Message 1 has image"),
        # Placeholders beside the column of their files.
        ({"messages": TALK, "images": []}, "Message 1 has <image>, which stands for pictures of the column images"),
        ({"messages": TALK, "img_path": "a.png"}, "of the column img_path"),
        ({"conversations": [{"from": "human", "value": "<audio>\nWho?"}, SHARED[1]], "sound file": "a"}, "<audio>"),
        ({"instruction": "Look.", "output": "See <video> above.", "video_url": "https://v"}, "Message 2 has <video>"),
        ({"prompt": "Which?", "chosen": "A.", "rejected": "<image>", "image_url": "https://i"}, "The rejected answer"),
        ({"text": "<image>\nA cat.", "picture": "a.png"}, "The text has <image>"),
    ],
)
def test_rows_with_more_than_text_are_refused(data: dict[str, Any], words: str) -> None:
    error = refused(data)
    assert error is not None
    assert error.code == "has_media"
    assert words in error.message
    assert error.message.endswith("only text is read.")


@cases(
    "data",
    [
        # Columns that hold nothing.
        *({"messages": PLAIN, "images": value} for value in (None, [], "", " ", "[]", "null", "NaN", [None], False, 0)),
        {**PAIR, "image": {"bytes": None, "path": None}, "audio": {"path": "", "bytes": "<0 bytes>"}},
        {**PAIR, "photo": {"bytes": None, "path": "a.png"}},
        {"messages": asked([{"type": "text", "text": "Hi", "image": None, "audio": []}]), "videos": {}},
        # Tags are text where no column says otherwise.
        {"messages": TALK},
        {"text": "The placeholder <image> stands for a picture in LLaVA."},
        {"text": "<video><source src='a'></video>", "video": None},
        {"instruction": "Fix <image>a.png</image>.", "output": "<img src=a.png>", "images": []},
        {"messages": TALK, "video": ""},
        # Other columns that are about pictures, or are answers.
        {**PAIR, "image_url": "https://shop/1.jpg", "image_count": 3, "imagery": "rich", "audiobook": "yes"},
        {**PAIR, "file": {"path": "a.py", "bytes": 123}, "sizes": [1, 2]},
        {"prompt": "Write JSON.", "completion": '{"image": "a.png", "role": 1}'},
        {"prompt": "Write JSON.", "completion": '[{"from": "a", "text": "b", "images": ["c"]}]'},
        {"messages": [*PLAIN[:1], {**ANSWER, "content": '[{"type": "image", "path": "a.png"}]'}]},
        {"messages": PLAIN, "tools": [{"name": "draw", "parameters": {"properties": {"image": {"type": "string"}}}}]},
    ],
)
def test_rows_of_text_are_read(data: dict[str, Any]) -> None:
    assert refused(data) is None


@cases(
    ("columns", "data", "is_refused"),
    [
        (
            {"user": "frage", "assistant": "antwort"},
            {"frage": "Was?", "antwort": "Eine Katze.", "image": "a.png"},
            True,
        ),
        ({"user": "frage", "assistant": "antwort"}, {"frage": "Was?", "antwort": "Eine Katze.", "image": ""}, False),
        ({"text": "image"}, {"image": "A picture in words.", "video": None}, False),
        ({"text": "image"}, {"image": "A picture in words.", "video": "a.mp4"}, True),
        ({"user": "image_prompt", "assistant": "b"}, {"image_prompt": "Is <image> a tag?", "b": "Of SVG."}, False),
        (
            {"messages": "talk", "role": "who", "content": "said", "user_role": "U", "assistant_role": "A"},
            {"talk": [{"who": "U", "said": [{"type": "video_url"}]}, {"who": "A", "said": "x"}]},
            True,
        ),
        (
            {"messages": "talk", "role": "who", "content": "said", "user_role": "U", "assistant_role": "A"},
            {"talk": [{"who": "U", "said": "q", "images": ["a.png"]}, {"who": "A", "said": "x"}]},
            True,
        ),
        ({"user": "q", "chosen": "c", "rejected": "r"}, {"q": [{"type": "image"}], "c": "x", "r": "y"}, True),
        ({"input_ids": "ids"}, {"ids": [1, 2], "pixel_values": PIXELS}, True),
    ],
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


@cases(
    ("kind", "row"),
    [
        ({"type": "chat_template"}, {"messages": TALK, "images": ["a.png"]}),
        ({"type": "chat_template"}, {"messages": asked("What?", images=["iVBOR"])}),
        ({"type": "chat_template"}, {"messages": asked([{"type": "image", "base64": "iVBOR"}])}),
        (
            {"type": "chat_template", "field_messages": "talk", "message_property_mappings": {"content": "said"}},
            {"talk": [{"role": "user", "said": [{"type": "audio", "path": "a"}]}, {"role": "assistant", "said": "x"}]},
        ),
        ({"type": "alpaca"}, {"instruction": "Look.", "input": "", "output": "A cat.", "image": "a.png"}),
        ({"type": "completion", "field": "body"}, {"body": "words", "videos": ["a.mp4"]}),
        ({"type": "pygmalion"}, {"conversations": [{"role": "human", "value": "a"}], "audio": "a.wav"}),
        (
            {"type": {"field_instruction": "q", "field_output": "a", "format": "Q: {instruction}"}},
            {"q": "Look.", "a": "A cat.", "image": "a.png"},
        ),
    ],
)
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


@cases(
    ("text", "kinds"),
    [
        ("<image><audio><image>", ["image", "audio"]),
        ("<image>a</image> and <video>", ["video"]),
        ("<Image> <image /> < image > <images>", []),
    ],
)
def test_placeholders_of_a_text(text: str, kinds: list[str]) -> None:
    assert find_placeholders(text) == kinds
