from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from core.data.files import text_rows
from core.data.files.shared_rows import open_shared
from core.data.files.spool import SpooledBytes
from core.errors import UserError
from tests.core.data.sample_files import json_lines, pairs, values, write
from tests.waiting import wait_for

ROWS = 120_000


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each look at a file has found rows in."""
    found: list[int] = []
    original = text_rows.TextRows.advance

    def advance(self: text_rows.TextRows) -> tuple[int, int]:
        before = self._offset
        try:
            return original(self)
        finally:
            found.append(self._offset - before)

    monkeypatch.setattr(text_rows.TextRows, "advance", advance)
    return found


def large(path: Path) -> Path:
    """A file of several chunks, so that its first rows are not all of them."""
    return write(path, json_lines(pairs(ROWS)))


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_two_who_want_all_rows_read_the_file_once(tmp_path: Path, scanned: list[int]) -> None:
    path = large(tmp_path / "a.jsonl")
    told: list[list[tuple[int, int]]] = [[], []]
    with open_shared(path) as one, open_shared(path) as other:
        before = one.count_known
        assert before < ROWS
        threads = [
            in_thread(lambda file=file, place=place: file.index(lambda *seen: told[place].append(seen)))  # type: ignore[misc]
            for place, file in enumerate((one, other))
        ]
        for thread in threads:
            thread.join(30)
        assert one.count_known == other.count_known == ROWS
        assert (one.complete, other.complete) == (True, True)
        assert values(one.rows(ROWS - 2, 9)) == values(other.rows(ROWS - 2, 9)) == pairs(2, ROWS - 2)
    assert sum(scanned) == path.stat().st_size
    assert any(told)


def test_who_waits_hears_of_the_progress_and_goes_on_where_the_first_is_closed(
    tmp_path: Path, scanned: list[int]
) -> None:
    path = large(tmp_path / "a.jsonl")
    one, other = open_shared(path), open_shared(path)
    is_under_way, may_go_on, told = threading.Event(), threading.Event(), threading.Event()

    def hold(_done: int, _total: int) -> None:
        is_under_way.set()
        assert may_go_on.wait(30)

    first = in_thread(lambda: one.index(hold))
    assert is_under_way.wait(30)
    second = in_thread(lambda: other.index(lambda *_: told.set()))
    wait_for(lambda: other._shared.listeners[1:], 30, "the second to wait")  # type: ignore[attr-defined]
    one.close()
    assert not told.is_set()
    may_go_on.set()
    first.join(30)
    second.join(30)
    assert told.is_set()
    assert other.complete
    assert other.count_known == ROWS
    assert sum(scanned) == path.stat().st_size
    with pytest.raises(UserError, match="has been closed"):
        one.rows(0, 1)
    other.close()


def test_who_waits_can_be_closed(tmp_path: Path) -> None:
    path = large(tmp_path / "a.jsonl")
    is_under_way, may_go_on = threading.Event(), threading.Event()

    def hold(_done: int, _total: int) -> None:
        is_under_way.set()
        assert may_go_on.wait(30)

    with open_shared(path) as one, open_shared(path) as other:
        first = in_thread(lambda: one.index(hold))
        assert is_under_way.wait(30)
        second = in_thread(other.index)
        other.close()
        second.join(30)
        assert not second.is_alive()
        assert first.is_alive()
        may_go_on.set()
        first.join(30)
        assert one.count_known == ROWS


def test_the_file_is_closed_with_its_last_handle_and_then_opened_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(pairs(3)))
    one, other = open_shared(path), open_shared(path)
    shared = one._file  # type: ignore[attr-defined]
    assert other._file is shared  # type: ignore[attr-defined]
    one.close()
    one.close()
    assert values(other.rows(0, 9)) == pairs(3)
    other.close()
    with pytest.raises(UserError, match="has been closed"):
        shared.rows(0, 1)
    with open_shared(path) as again:
        assert values(again.rows(0, 9)) == pairs(3)


def test_a_file_that_has_changed_is_not_shared_with_who_has_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(pairs(3)))
    with open_shared(path) as before:
        write(tmp_path / "b.jsonl", json_lines(pairs(5)))
        os.replace(tmp_path / "b.jsonl", path)
        with open_shared(path) as now:
            assert values(now.rows(0, 9)) == pairs(5)
        with pytest.raises(UserError, match="has been replaced"):
            before.rows(0, 9)


def test_a_directory_with_another_shard_is_opened_anew(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.jsonl", json_lines(pairs(3)))
    with open_shared(tmp_path / "d") as before:
        write(tmp_path / "d" / "b.jsonl", json_lines(pairs(2, 3)))
        with open_shared(tmp_path / "d") as now, open_shared(tmp_path / "d") as too:
            now.index()
            assert now.count_known == too.count_known == 5
        before.index()
        assert before.count_known == 3


def test_a_packed_file_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []
    original = SpooledBytes.__init__

    def count(self: SpooledBytes, source: object) -> None:
        original(self, source)  # type: ignore[arg-type]
        started.append(tmp_path)

    monkeypatch.setattr(SpooledBytes, "__init__", count)
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(json_lines(pairs(900)).encode()))
    with open_shared(path) as one, open_shared(path) as other:
        one.index()
        other.index()
        assert one.count_known == other.count_known == 900
    assert len(started) == 1


def test_what_cannot_be_opened_is_said_to_everyone(tmp_path: Path) -> None:
    empty = write(tmp_path / "a.jsonl", "")
    for _ in range(2):
        with pytest.raises(UserError, match="is empty"):
            open_shared(empty)
    with pytest.raises(UserError, match="There is no file"):
        open_shared(tmp_path / "b.jsonl")
    write(empty, json_lines(pairs(1)))
    with open_shared(empty) as now:
        assert now.count_known == 1


def test_the_index_is_kept_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_home: Path
) -> None:
    monkeypatch.setattr(text_rows, "SMALLEST", 100)
    path = large(tmp_path / "a.jsonl")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    with open_shared(path) as one, open_shared(path) as other:
        other.index()
        one.index()
    assert len(list((private_home / "cache" / "index").iterdir())) == 1
