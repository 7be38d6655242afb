"""The fault matrix of ``matrix.toml``, and the table of ``docs/reliability.md``, made from it and test reports.

``python -m tests.faults.table --list`` prints the tests of the fault matrix; run them with ``--junit-xml=FILE``, and
``python -m tests.faults.table FILE`` writes the table with their results. Of several reports, the last with a test
counts.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import tomli

ROOT = Path(__file__).resolve().parents[2]
#: Subjects of faults.
FAMILIES = ("processes", "storage", "memory", "numbers", "devices", "clock", "input", "network", "terminal")
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: python -m tests.faults.table -->", "<!-- end of the table -->"
HEAD = ("#", "Fault", "Must hold", "Result")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault: its injection, the property that must hold, and the tests for it."""

    number: int
    family: str
    fault: str
    injected: str
    holds: str
    tests: tuple[str, ...] = ()
    """Ids as of pytest, without parameters."""
    reason: str = ""
    """Why there is no test; empty if there is one."""


def read_matrix() -> list[Row]:
    """The rows of ``matrix.toml``, in their order."""
    data = tomli.loads(Path(__file__).with_name("matrix.toml").read_text(encoding="utf-8"))
    return [Row(**{**row, "tests": tuple(row.get("tests", ()))}) for row in data["row"]]


def read_results(junit: Path) -> dict[str, list[str]]:
    """Results of each test, ``passed``, ``failed`` or ``skipped: why``, one for each of its parameters.

    Args:
        junit: A trusted report of pytest.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for case in ET.parse(junit).getroot().iter("testcase"):  # noqa: S314 - our own report
        file = case.get("classname", "").replace(".", "/") + ".py"
        test = f"{file}::{case.get('name', '').partition('[')[0]}"
        if case.find("failure") is not None or case.find("error") is not None:
            found[test].append("failed")
        elif (skipped := case.find("skipped")) is not None:
            found[test].append(f"skipped: {skipped.get('message', '')}")
        else:
            found[test].append("passed")
    return dict(found)


def verdict(row: Row, results: dict[str, list[str]]) -> str:
    """Result of the tests of a row, in a few words."""
    if not row.tests:
        return f"no test: {row.reason}"
    told = [result for test in row.tests for result in results.get(test, ["not run"])]
    if "failed" in told:
        return "**failed**"
    if not_run := [result for result in told if result != "passed"]:
        why = sorted({result.removeprefix("skipped: ") for result in not_run})
        return f"{len(told) - len(not_run)} of {len(told)} passed; {'; '.join(why)}"
    return "passed"


def line(row: Row, result: str) -> str:
    """A row of the table."""
    cells = (str(row.number), row.fault, row.holds, result)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(results: dict[str, list[str]]) -> str:
    """All rows, by number."""
    head = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return "\n".join([*head, *(line(row, verdict(row, results)) for row in read_matrix())])


def machine() -> str:
    """When and where they ran."""
    today = datetime.date.today().isoformat()
    return f"Run on {today}: {platform.system()} {platform.machine()}, {os.cpu_count()} cores, no GPU."


def write(page: Path, results: dict[str, list[str]]) -> None:
    """Put the table into the page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{machine()}\n\n{table(results)}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Write the table, or print the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("junit", nargs="*", type=Path, help="reports of pytest's --junit-xml")
    parser.add_argument("--list", action="store_true", help="print the tests instead")
    args = parser.parse_args()
    if args.list:
        print("\n".join(dict.fromkeys(test for row in read_matrix() for test in row.tests)))  # noqa: T201
        return 0
    if not args.junit:
        parser.error("name a report, or --list")
    results: dict[str, list[str]] = {}
    for report in args.junit:
        results |= read_results(report)
    write(PAGE, results)
    return 1 if any("failed" in told for told in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
