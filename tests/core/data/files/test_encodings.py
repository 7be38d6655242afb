"""Text in other encodings: read where its letters leave no doubt, and kept as it is elsewhere."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import yaml

from core.data.files.encodings import find_encoding
from core.data.files.reader import open_rows
from core.data.registries.source import DataSource
from tests.cases import cases
from tests.core.data.sample_files import read_rows, refusal, values, write

TEXTS = yaml.safe_load(Path(__file__).with_name("encodings.yaml").read_text(encoding="utf-8"))
READ = [(case["text"], encoding) for case in TEXTS for encoding in case.get("read", ())]
UNSURE = [(case["text"], encoding) for case in TEXTS for encoding in case.get("unsure", ())]
CHINESE = TEXTS[0]["text"]


def encoding_of(path: Path) -> str:
    with path.open("rb") as file:
        return find_encoding(file.fileno(), os.path.getsize(path))


@cases(("text", "encoding"), READ)
def test_a_text_is_read_in_its_encoding(tmp_path: Path, text: str, encoding: str) -> None:
    rows = [{"prompt": text, "completion": word} for word in text.split()]
    path = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False).encode(encoding))
    assert values(read_rows(path)) == rows
    lines = write(tmp_path / "a.txt", f"{text}\n\n{text}".encode(encoding))
    assert [(row.line, row.data) for row in read_rows(lines)] == [(1, {"text": text}), (3, {"text": text})]


@cases(("text", "encoding"), [*UNSURE, *((case["text"], "utf-8") for case in TEXTS)])
def test_a_doubtful_encoding_is_not_guessed(tmp_path: Path, text: str, encoding: str) -> None:
    assert encoding_of(write(tmp_path / "a.txt", text.encode(encoding))) == ""


def test_the_reading_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"question,answer\n{CHINESE},好\n".encode("gb18030"))
    source = DataSource("a.csv", path)
    with source.open() as file:
        assert source.recognize(file).reason.endswith("It is read as GB18030.")


def test_objects_of_arrays_are_read_too(tmp_path: Path) -> None:
    columns = {"prompt": [CHINESE, "一"], "completion": ["是", "不"]}
    path = write(tmp_path / "a.json", json.dumps(columns, ensure_ascii=False).encode("gb18030"))
    assert values(read_rows(path)) == [{"prompt": CHINESE, "completion": "是"}, {"prompt": "一", "completion": "不"}]


def test_the_decision_is_made_for_the_whole_file(tmp_path: Path) -> None:
    # Letters come megabytes after a beginning in ASCII, and a damaged row does not change the reading of the others.
    plain, row = '{"text": "plain"}\n' * 100_000, json.dumps({"text": CHINESE}, ensure_ascii=False)
    chinese = f"{row}\n".encode("gb18030") * 8_000
    path = write(tmp_path / "a.jsonl", plain.encode() + chinese + b'{"text": "\x81"}\n' + chinese)
    with open_rows(path) as file:
        file.index()
        assert file.count_known == 116_001
        assert [row.data for row in file.rows(99_999, 2)] == [{"text": "plain"}, {"text": CHINESE}]
        damaged, following = file.rows(108_000, 2)
    assert (damaged.code, damaged.line, following.data) == ("not_utf8", 108_001, {"text": CHINESE})
    assert "not a character in the encoding of the file" in damaged.error


def test_utf8_with_damaged_rows_stays_utf8(tmp_path: Path) -> None:
    rows = [
        CHINESE.encode(),
        b"caf\xe9 caf\xe9 caf\xe9 caf\xe9 caf\xe9 caf\xe9 caf\xe9 caf\xe9",
        *[CHINESE.encode()] * 9,
    ]
    found = list(read_rows(write(tmp_path / "a.txt", b"\n".join(rows))))
    assert [row.code for row in found] == ["", "not_utf8", *[""] * 9]


def test_packed_utf16_is_refused(tmp_path: Path) -> None:
    packed = write(tmp_path / "a.txt.gz", gzip.compress("text".encode("utf-16")))
    assert "UTF-16 text inside" in refusal(packed).message
