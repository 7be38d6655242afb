"""Row marks, jumps from one to the next, and filters."""

from __future__ import annotations

import asyncio
import threading
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.analysis.problems import Problem, RowPlace
from core.analysis.result import Analysis
from core.errors import UserError
from tests.cases import cases
from tests.core.data.sample_files import json_lines, pairs, write
from tui.datasets.marks import RowFilter, RowMarks, RowOrder, next_filter
from tui.datasets.plan import Reading
from tui.datasets.view import DatasetView, open_dataset, paced


def problem(code: str, *rows: int) -> Problem:
    places = tuple(RowPlace(row, row + 1) for row in rows[:20])
    return Problem(code, len(rows), places, array("I", rows))


def test_the_worst_problem_of_a_row_is_its_mark() -> None:
    rows = problem("overlong", 1), problem("duplicate", 1, 3), problem("email", 4)
    whole = problem("format_ambiguous"), Problem("not_trained_on", 3, (), array("I", range(3)))
    marks = RowMarks.of(Analysis((), 6, 6, {}, (*rows, *whole)))
    assert [marks.level(index) for index in range(6)] == [None, "drop", None, "warn", None, None]
    assert marks.level(99) is None
    assert marks.count == 2, "rows that are only noted are no problems, nor is what is true of the whole file"


@given(st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_the_next_and_the_one_before_go_around(bad: set[int], index: int) -> None:
    marks = RowMarks()
    for row in bad:
        marks.note(row, "drop" if row % 2 else "warn")
    assert marks.count == len(bad)
    after = min((row for row in bad if row > index), default=min(bad, default=None))
    before = max((row for row in bad if row < index), default=max(bad, default=None))
    assert (marks.after(index), marks.before(index)) == (after, before)


def test_a_seen_row_keeps_its_worst_level() -> None:
    marks = RowMarks()
    marks.note(5, "drop")
    marks.note(5, "warn")
    marks.note(6, "note")
    assert (marks.level(5), marks.level(6), marks.count) == ("drop", None, 1)


@cases(("before", "step", "after"), [(None, 1, 0), (0, 1, 2), (2, 1, None), (None, -1, 2), ("of no row", 1, 0)])
def test_filters_follow_one_another_and_then_all_rows(before: int | str | None, step: int, after: int | None) -> None:
    problems = [problem("overlong", 2, 7), problem("not_json"), problem("duplicate", 3)]
    code = problems[before].code if isinstance(before, int) else before
    chosen = next_filter(problems, code, step)
    assert (chosen.code if chosen is not None else None) == (problems[after].code if after is not None else None)
    assert next_filter([], code, step) is None


def test_an_order_comes_before_the_problems_and_keeps_its_own_places() -> None:
    order = RowOrder("by_loss", "by loss", "", array("I", [7, 2, 5]), 3)
    assert [order.place(row) for row in (7, 2, 5, 3)] == [0, 1, 2, None]
    assert (order.nearest(5), order.nearest(3)) == (2, 0)
    empty = RowOrder("not_learned", "worst learned", "", array("I"), 0)
    problems = [problem("overlong", 2, 7)]
    assert next_filter(problems, None, 1, [empty, order]) is order
    following = next_filter(problems, "by_loss", 1, [empty, order])
    assert following is not None
    assert following.code == "overlong"
    assert next_filter(problems, "overlong", 1, [empty, order]) is None


def test_places_in_a_filter() -> None:
    chosen = RowFilter.of(problem("overlong", 2, 7, 40))
    assert [chosen.place(index) for index in (2, 3, 40)] == [0, None, 2]
    assert [chosen.nearest(index) for index in (0, 3, 7, 41)] == [0, 1, 1, 2]


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
