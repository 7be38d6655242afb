from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.tui.scripted_run import ScriptedRun
from tui.datasets import here
from tui.datasets.here import find_files, look_around


def write(directory: Path, name: str, text: str, age: int = 0) -> Path:
    path = directory / name
    path.write_text(text)
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return path


def test_data_files_are_found_with_their_rows_the_newest_first(tmp_path: Path) -> None:
    write(tmp_path, "old.jsonl", '{"text": "a"}\n' * 3, age=9)
    write(tmp_path, "faq.csv", "question,answer\na,b\n", age=1)
    write(tmp_path, "table.json", json.dumps([{"prompt": "a", "completion": "b"}] * 2), age=2)
    write(tmp_path, "package.json", json.dumps({"name": "x", "version": 1}))
    write(tmp_path, "README.txt", "nothing to learn")
    write(tmp_path, ".hidden.csv", "question,answer\na,b\n")
    write(tmp_path, "empty.csv", "")
    write(tmp_path, "broken.parquet", "no table")
    (tmp_path / "folder.csv").mkdir()
    found = find_files(tmp_path)
    assert [(file.path.name, file.rows) for file in found] == [("faq.csv", 1), ("table.json", 2), ("old.jsonl", 3)]
    assert find_files(tmp_path / "nowhere") == ()


def test_large_files_are_not_counted_on_the_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "_COUNTED_BYTES", 10)
    write(tmp_path, "rows.jsonl", '{"text": "a"}\n' * 30)
    (found,) = find_files(tmp_path)
    assert (found.rows, found.bytes) == (None, 30 * 14)


def test_the_last_run_is_named(tmp_path: Path, private_home: Path) -> None:
    assert look_around(tmp_path).runs == 0
    for name in ("20261123-090000-first", "20261124-090000-second"):
        ScriptedRun(private_home, name).begin().end("finished")
    found = look_around(tmp_path)
    assert (found.runs, found.last_run, found.last_state) == (2, "20261124-090000-second", "finished")
    assert found.last_ended > 0


def test_of_many_settings_only_some_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write(tmp_path, "rows.csv", "question,answer\na,b\n", age=10**9)
    for number in range(60):
        (tmp_path / f"{number}.json").write_text('{"compilerOptions": {"strict": true}}')
    counted = Mock(wraps=here._count)
    monkeypatch.setattr(here, "_count", counted)
    (found,) = find_files(tmp_path)
    assert found.path == rows
    assert counted.call_count == 21
