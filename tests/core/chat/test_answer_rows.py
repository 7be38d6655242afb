from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from core.chat.answer_rows import append_row, remember_file, remembered_file
from core.errors import UserError
from tests.cases import cases

ROW = [{"role": "user", "content": "hé\n"}, {"role": "assistant", "content": "a\x1b[2J"}]


def test_answers_are_appended_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    append_row(path, ROW)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().rstrip())  # a last line without its end stays a row
    append_row(path, ROW)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [{"messages": ROW}] * 2


@cases(
    ("name", "content", "says"),
    [
        ("rows.csv", None, "not a JSON Lines file"),
        ("rows.jsonl", b'{"instruction": "x"}\n', "no messages"),
        ("rows.jsonl", b"not JSON\n", "no messages"),
        ("rows.jsonl", b"[" * 100_000 + b"\n", "no messages"),
        ("missing/rows.jsonl", None, "cannot be written"),
    ],
)
def test_other_files_are_refused_untouched(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        append_row(path, ROW)
    assert (path.read_bytes() if content is not None else None) == content
    assert path.exists() is (content is not None)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        append_row(path, ROW)


def test_what_does_not_fit_whole_leaves_no_half_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    append_row(path, ROW)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            append_row(path, [{"role": "assistant", "content": "x" * 5000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_the_file_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert remembered_file() is None
    remember_file(Path("good.jsonl"))
    assert remembered_file() == tmp_path / "good.jsonl"
    (tmp_path / "home" / "answers.json").write_text("[1]")
    assert remembered_file() is None
