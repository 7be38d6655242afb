"""Rows left out by file and line: names of files, ranges of lines, and entries that name nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.exclusion import Exclusion, entries_of
from core.errors import UserError

LINES = st.sets(st.tuples(st.sampled_from(["a.jsonl", "mine/a.jsonl", "b:c.csv"]), st.integers(1, 40)), min_size=1)


@given(LINES)
def test_entries_name_the_rows_that_they_were_made_of_and_no_others(rows: set[tuple[str, int]]) -> None:
    entries = entries_of(rows)
    assert len(entries) <= len(rows)
    found = Exclusion(entries)
    # "a.jsonl" is also the end of the longer path.
    wanted = rows | {("mine/a.jsonl", line) for file, line in rows if file == "a.jsonl"}
    every = [(file, line) for file in ("a.jsonl", "mine/a.jsonl", "b:c.csv") for line in range(1, 42)]
    assert {row for row in every if found.names(*row)} == wanted


def test_a_file_is_named_by_the_end_of_its_path_in_whole_parts() -> None:
    found = Exclusion(["rows.jsonl:3", "mine/rows.jsonl:4-6", "/data/mine/rows.jsonl:9"])
    assert found.names("/data/mine/rows.jsonl", 3)
    assert [line for line in range(1, 12) if found.names("/data/mine/rows.jsonl", line)] == [3, 4, 5, 6, 9]
    assert not found.names("/data/more-rows.jsonl", 3)
    assert not found.names("/data/yours/rows.jsonl", 5)
    assert not found.names("/elsewhere/data/mine/rows.jsonl", 9)


def test_an_entry_that_names_no_row_is_refused_unless_other_files_may_have_it() -> None:
    found = Exclusion(["rows.jsonl:1", "rows.jsonl:9-7"])
    assert found.names("/data/rows.jsonl", 1)
    with pytest.raises(UserError, match=r"^data\.exclude names rows\.jsonl:9-7, and data\.train has no such row\."):
        found.check()
    found.check(is_part=True)


def test_an_entry_for_two_files_is_refused_with_a_longer_name() -> None:
    found, other = Exclusion(["rows.jsonl:1"]), Exclusion(["rows.jsonl:1"])
    assert found.names("/data/a/rows.jsonl", 1)
    found.check()
    assert other.names("/data/b/rows.jsonl", 1)
    found.merge(other.files)
    with pytest.raises(UserError, match="2 files have that name") as caught:
        found.check()
    assert caught.value.hint.endswith("/data/a/rows.jsonl.")
