"""Tasks in threads: a canceled wait leaves nothing open."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from core.errors import UserError
from tests.cases import cases
from tests.core.data.sample_files import json_lines, pairs, write
from tui.datasets.plan import Reading
from tui.datasets.view import DatasetView, open_dataset, paced


async def test_a_file_that_nobody_waits_for_any_more_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", json_lines(pairs(3)))
    begun, go_on, closed = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Held(DatasetView):
        def __init__(self, path: Path, reading: Reading) -> None:
            loop.call_soon_threadsafe(begun.set)
            go_on.wait()
            super().__init__(path, reading)

        def close(self) -> None:
            super().close()
            closed.set()

    monkeypatch.setattr("tui.datasets.view.DatasetView", Held)
    opening = asyncio.create_task(open_dataset(path, Reading()))
    await begun.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not closed.is_set()
    go_on.set()
    await asyncio.wait_for(closed.wait(), 30)


@cases("error", [PermissionError(13, "Permission denied"), RecursionError("too deep"), MemoryError()])
async def test_whatever_keeps_a_file_from_being_read_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(path: Path, reading: Reading) -> DatasetView:
        raise error

    monkeypatch.setattr("tui.datasets.view.DatasetView", refuse)
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be read: "):
        await open_dataset(tmp_path / "rows.jsonl", Reading())


def test_reports_come_through_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("tui.datasets.view.time.monotonic", lambda: now)
    told: list[int] = []
    report = paced(told.append)
    for number, now in enumerate((100.1, 100.3, 100.4, 100.6)):  # noqa: B007 - the clock reads it
        report(number)
    assert told == [1, 3]
