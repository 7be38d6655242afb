"""Row marks, jumps from one to the next, and filters."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from core.analysis.problems import Problem, RowPlace
from core.analysis.result import Analysis
from tui.datasets.marks import RowFilter, RowMarks, next_filter


def problem(code: str, *rows: int) -> Problem:
    places = tuple(RowPlace(row, row + 1) for row in rows[:20])
    return Problem(code, len(rows), places, array("I", rows))


def analysis(rows: int, *problems: Problem) -> Analysis:
    return Analysis(sources=(), rows=rows, used=rows, dropped={}, problems=problems)


def test_the_worst_problem_of_a_row_is_its_mark() -> None:
    marks = RowMarks.of(
        analysis(
            6, problem("overlong", 1), problem("duplicate", 1, 3), problem("email", 4), problem("format_ambiguous")
        )
    )
    assert [marks.level(index) for index in range(6)] == [None, "drop", None, "warn", None, None]
    assert marks.level(99) is None
    assert marks.count == 2, "rows that are only noted are no problems, nor is what is true of the whole file"


def test_a_problem_of_the_whole_file_marks_no_row() -> None:
    whole = Problem("not_trained_on", 3, (), array("I", range(3)))
    assert RowMarks.of(analysis(3, whole)).count == 0


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


def test_filters_follow_one_another_and_end_with_all_rows() -> None:
    problems = [problem("overlong", 2, 7), problem("not_json"), problem("duplicate", 3)]
    names = []
    code: str | None = None
    for _ in range(4):
        chosen = next_filter(problems, code, 1)
        code = chosen.code if chosen is not None else None
        names.append(code)
    assert names == ["overlong", "duplicate", None, "overlong"]
    back = next_filter(problems, None, -1)
    assert back is not None
    assert back.code == "duplicate"
    assert next_filter([], None, 1) is None
    gone = next_filter(problems, "a code that is no more", 1)
    assert gone is not None
    assert gone.code == "overlong"


def test_places_in_a_filter() -> None:
    chosen = RowFilter.of(problem("overlong", 2, 7, 40))
    assert [chosen.place(index) for index in (2, 3, 40)] == [0, None, 2]
    assert [chosen.nearest(index) for index in (0, 3, 7, 41)] == [0, 1, 1, 2]
