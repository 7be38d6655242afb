from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from core.data.files import text_rows
from core.data.files.reader import open_rows
from tests.cases import cases
from tests.core.data.sample_files import values


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settled file whose index has been kept."""
    monkeypatch.setattr(text_rows, "SMALLEST", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": n, "s": "x" * 100}) + "\n" for n in range(100_000)))
    settle(path)
    with open_rows(path) as file:
        assert not file.complete
        file.index()
    return path


def settle(path: Path, age: float = 100.0) -> None:
    os.utime(path, (time.time() - age,) * 2)


def indexes(home: Path) -> list[Path]:
    return sorted((home / "cache" / "index").glob("*"))


def test_an_index_is_kept_for_the_next_time(kept: Path, private_home: Path) -> None:
    (index,) = indexes(private_home)
    assert stat.S_IMODE(index.stat().st_mode) == 0o600
    with open_rows(kept) as file:
        assert (file.complete, file.count_known) == (True, 100_000)
        assert [(row.data or {})["n"] for row in file.rows(99_998, 9)] == [99_998, 99_999]
        assert file.row(99_999).line == 100_000
        file.index()


def test_a_changed_file_is_indexed_anew(kept: Path, private_home: Path) -> None:
    with kept.open("a") as file:
        file.write('{"n": -1}\n')
    settle(kept, 50)
    with open_rows(kept) as opened:
        assert not opened.complete
        opened.index()
        assert opened.count_known == 100_001
    with open_rows(kept) as opened:
        assert values(opened.rows(100_000, 1)) == [{"n": -1}]
    assert len(indexes(private_home)) == 1


@cases("place", [0, 9, 60, 500, -1, -200])
def test_a_damaged_index_does_not_count(kept: Path, private_home: Path, place: int) -> None:
    (index,) = indexes(private_home)
    whole = index.read_bytes()
    raw = bytearray(whole)
    raw[place] ^= 0xFF
    index.write_bytes(raw)
    with open_rows(kept) as file:
        assert not file.complete
        file.index()
        assert file.count_known == 100_000
    index.write_bytes(whole)


def test_a_cut_or_empty_index_does_not_count(kept: Path, private_home: Path) -> None:
    (index,) = indexes(private_home)
    raw = index.read_bytes()
    for size in (0, 5, 100, len(raw) - 1):
        index.write_bytes(raw[:size])
        with open_rows(kept) as file:
            assert not file.complete


def test_a_file_that_was_just_written_is_not_remembered(kept: Path, private_home: Path) -> None:
    (index,) = indexes(private_home)
    index.unlink()
    os.utime(kept)
    with open_rows(kept) as file:
        file.index()
    assert indexes(private_home) == []


def test_old_indexes_are_forgotten(kept: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rows, "KEPT", 2)
    for number in range(3):
        path = kept.with_name(f"{number}.jsonl")
        path.write_bytes(kept.read_bytes())
        settle(path)
        with open_rows(path) as file:
            file.index()
    assert len(indexes(private_home)) == 2


def test_a_home_that_cannot_be_written_costs_only_time(kept: Path, private_home: Path) -> None:
    (index,) = indexes(private_home)
    index.unlink()
    index.parent.rmdir()
    index.parent.write_text("in the way")
    with open_rows(kept) as file:
        file.index()
        assert file.count_known == 100_000
