"""The fault matrix is whole: forty rows, each with tests that are there or with a reason, all on the page."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from tests.cases import cases
from tests.faults import table
from tests.faults.table import FAMILIES, ROOT, Row, read_matrix

ROWS = read_matrix()


@functools.cache
def functions_of(file: str) -> set[str]:
    """Names of the functions of a module, relative to the repository."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def test_there_are_forty_rows_each_of_a_family() -> None:
    assert [row.number for row in ROWS] == list(range(1, 41))
    assert {row.family for row in ROWS} == set(FAMILIES)


@cases("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_has_tests_that_are_there_or_a_reason(row: Row) -> None:
    assert bool(row.tests) != bool(row.reason), "one or the other"
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name.startswith("test_")
        assert name in functions_of(file), f"{test} is gone"
    assert all(text and "\n" not in text for text in (row.fault, row.injected, row.holds))


@cases("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_is_on_the_page(row: Row) -> None:
    """With any result: that is of the machine that it ran on."""
    cells = table.line(row, "").removesuffix(" |").rstrip()
    found = [
        line for line in table.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {row.number} |")
    ]
    assert len(found) == 1
    assert found[0].startswith(cells), "write it anew: python -m tests.faults.table"


def test_the_table_shows_what_ran(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.a.test_x" name="test_one[1-a]"/>'
        '<testcase classname="tests.a.test_x" name="test_one[2]"><skipped message="not run: no GPU"/></testcase>'
        '<testcase classname="tests.a.test_x" name="test_two"><failure message="no"/></testcase>'
        '<testcase classname="tests.a.test_x" name="test_three"/>'
        "</testsuite></testsuites>"
    )
    results = table.read_results(report)

    def told(*names: str, reason: str = "") -> str:
        tests = tuple(f"tests/a/test_x.py::{name}" for name in names)
        row = Row(number=1, family="clock", fault="f", injected="i", holds="h", tests=tests, reason=reason)
        return table.verdict(row, results)

    assert told("test_three") == "passed"
    assert told("test_three", "test_one") == "2 of 3 passed; not run: no GPU"
    assert told("test_three", "test_two") == "**failed**"
    assert told("test_three", "test_four") == "1 of 2 passed; not run"
    assert told(reason="Why.") == "no test: Why."
