from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from core.data.files import spool, text_rows
from core.data.files.rows import Progress, RowFile
from core.data.files.shared_rows import open_shared
from core.errors import UserError
from core.helper import Helper
from tests.core.data.sample_files import json_lines, pairs, values, write
from tests.waiting import wait_for

ROWS = 120_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of several chunks, so that its first rows are not all of them."""
    return write(tmp_path / "a.jsonl", json_lines(pairs(ROWS)))


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


class Hold:
    """Progress of an index that waits until it may go on."""

    def __init__(self) -> None:
        self.is_under_way, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, done: int, total: int) -> None:
        self.is_under_way.set()
        assert self.may_go_on.wait(30)


def indexing(file: RowFile, progress: Progress | None = None) -> threading.Thread:
    """A thread that indexes a file; with a :class:`Hold` it is under way."""
    thread = threading.Thread(target=file.index, args=(progress,), daemon=True)
    thread.start()
    assert not isinstance(progress, Hold) or progress.is_under_way.wait(30)
    return thread


def test_two_who_want_all_rows_read_the_file_once(path: Path, scanned: list[int]) -> None:
    told: list[tuple[int, int]] = []
    with open_shared(path) as one, open_shared(path) as other:
        before = one.count_known
        assert before < ROWS
        for thread in [indexing(file, lambda *seen: told.append(seen)) for file in (one, other)]:
            thread.join(30)
        assert one.count_known == other.count_known == ROWS
        assert (one.complete, other.complete) == (True, True)
        assert values(one.rows(ROWS - 2, 9)) == values(other.rows(ROWS - 2, 9)) == pairs(2, ROWS - 2)
    assert sum(scanned) == path.stat().st_size
    assert told


def test_who_waits_hears_of_the_progress_and_goes_on_where_the_first_is_closed(path: Path, scanned: list[int]) -> None:
    one, other = open_shared(path), open_shared(path)
    hold, told = Hold(), threading.Event()
    first = indexing(one, hold)
    second = indexing(other, lambda *_: told.set())
    wait_for(lambda: other._shared.listeners[1:], 30, "the second to wait")  # type: ignore[attr-defined]
    one.close()
    assert not told.is_set()
    hold.may_go_on.set()
    first.join(30)
    second.join(30)
    assert told.is_set()
    assert other.complete
    assert other.count_known == ROWS
    assert sum(scanned) == path.stat().st_size
    with pytest.raises(UserError, match="has been closed"):
        one.rows(0, 1)
    other.close()


def test_who_waits_can_be_closed(path: Path) -> None:
    hold = Hold()
    with open_shared(path) as one, open_shared(path) as other:
        first = indexing(one, hold)
        second = indexing(other)
        other.close()
        second.join(30)
        assert not second.is_alive()
        assert first.is_alive()
        hold.may_go_on.set()
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
    started: list[str] = []

    def start(module: str, *given: str, **more: Any) -> Helper:
        started.append(module)
        return Helper(module, *given, **more)

    monkeypatch.setattr(spool, "Helper", start)
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
