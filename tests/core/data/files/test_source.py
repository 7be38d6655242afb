from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from core.data.files.source import open_source
from core.errors import UserError
from tests.cases import cases
from tests.core.data.sample_files import descriptors
from tests.unprivileged import unprivileged


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        os.close(open_source(path).descriptor)
    assert caught.value.hint
    return caught.value


@cases(
    ("name", "content", "kind"),
    [
        ("a.jsonl", b'{"a": 1}\n', "jsonl"),
        ("a.JSONL", b'\n\n{"a": 1}\n', "jsonl"),
        ("a.ndjson", b"not json", "jsonl"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("a.json", b' [\n{"a": 1}]', "json"),
        ("a.json", b'[{"a": [1]\n}]', "json"),
        ("a.jsonl", b'[{"a": 1}, {"a": 2}]\n', "json"),
        ("a.jsonl", b"[1]\n[2]\n", "jsonl"),
        ("a.csv", b"a,b\n1,2\n", "csv"),
        ("a.tsv", b"a\tb\n1\t2\n", "csv"),
        ("noname", b'{"a": 1}', "jsonl"),
        ("a.dat", b'\xef\xbb\xbf[{"a": 1}]', "json"),
    ],
)
def test_kind(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    source = open_source(path)
    os.close(source.descriptor)
    assert source.layout is not None
    assert source.layout.kind == kind
    assert source.layout.start == (3 if content.startswith(b"\xef") else 0)


@cases(
    ("content", "kind", "start"),
    [
        (b'{"data": [{"q": 1}, {"q": 2}]}', "json", 9),
        (b'{\n "version": "1.0", "n": 3,\n "data": [\n{"q": 1}]\n}', "json", 38),
        (b'{"messages": [{"role": "user"}]}', "jsonl", 0),
        (b'{"id": 3, "messages": [{"role": "user"}]}\n', "jsonl", 0),
        (b'{"input_ids": [1, 2]}\n', "jsonl", 0),
        (b'{"data": [{"q": 1}]}\n{"data": [{"q": 2}]}\n', "jsonl", 0),
        (b'{"data": {"q": [1]}}', "jsonl", 0),
        (b'{"a": "[{", "b": 1}', "jsonl", 0),
        (b'{"q": ["a"], "a": ["b"]}', "columns", 0),
        (b'{"messages": [[{"role": "user"}]]}', "columns", 0),
        (b'{"data": []}', "jsonl", 0),
    ],
)
def test_objects_that_hold_rows_and_objects_that_are_rows(
    tmp_path: Path, content: bytes, kind: str, start: int
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    source = open_source(path)
    os.close(source.descriptor)
    found = (source.layout.kind, source.layout.start) if source.layout else (source.packing, 0)
    assert found == (kind, start)


@cases(
    ("name", "content", "delimiter"),
    [("a.csv", b"a,b;c\n", ","), ("a.csv", b"a;b\n1,5;2\n", ";"), ("a.csv", b"a\n", ","), ("a.tsv", b"a,b\tc\n", "\t")],
)
def test_delimiter(tmp_path: Path, name: str, content: bytes, delimiter: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    source = open_source(path)
    os.close(source.descriptor)
    assert source.layout is not None
    assert source.layout.delimiter == delimiter


@cases(
    ("name", "content", "part"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl.bz2", b"BZh9", "is an archive"),
        ("a.jsonl.gz", b'{"a": 1}', "is no gzip file, whatever its name says"),
        ("a.parquet", b"hello", "is no parquet file, whatever its name says"),
        ("a.tar.gz", b"\x1f\x8b\x08\x00", "is a compressed tar file"),
        ("a.xlsx", b"PK\x03\x04", "is an archive or a spreadsheet"),
        ("a.md", b"hello", "is a document"),
        ("a.jsonl", "{}".encode("utf-16"), "is UTF-16 text"),
        ("a.jsonl", bytes(range(32)) * 100, "is not text"),
        ("a.jsonl", bytes(5000), "is not text"),
        ("a.bin", b"hello", "is of a kind that is not read"),
        ("a.json", b'{\n  "a": 1\n}\n', "one JSON object spread over several lines"),
    ],
)
def test_refuses_what_is_not_read(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert part in refusal(path).message


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    assert "There is no file at" in refusal(tmp_path / "absent.jsonl").message
    assert "is a directory" in refusal(tmp_path).message
    file = tmp_path / "file"
    file.write_text("x")
    assert "There is no file at" in refusal(file / "below.jsonl").message
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert "leads back to itself" in refusal(loop).message
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000)).message
    assert "cannot be read" in refusal(Path("nul\0.jsonl")).message


def test_a_pipe_a_socket_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    assert "is a named pipe" in refusal(pipe).message
    assert "is a device" in refusal(Path("/dev/zero")).message
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert "is a socket" in refusal(tmp_path / "s").message


def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    path.chmod(0)
    with unprivileged():
        assert "may not be read by you" in refusal(path).message


def test_control_characters_in_the_name_are_not_shown() -> None:
    assert "\x1b" not in str(refusal(Path("/tmp/\x1b]52;c;eA==\x07.jsonl")))


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes(100))
    for _ in range(5):
        refusal(path)
    assert descriptors(tmp_path) == []
