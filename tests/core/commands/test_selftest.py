from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from core import paths
from core.commands.command_line import command_parser
from core.selftest import job
from core.selftest.report import SUBJECTS
from tests.cases import cases

from .conftest import Call


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A self-test that passes, with a starter model that is there."""
    monkeypatch.setattr(job, "PROGRAM", "tests.core.selftest.scripted_check")
    monkeypatch.setattr(job, "read_record", lambda _: {})
    monkeypatch.setenv("SCRIPTED_PLAN", "{}")
    return monkeypatch


def test_a_table_progress_beside_it_and_a_report(call: Call) -> None:
    told = call.ok("selftest")
    assert told.out.startswith("Card 9000\n")
    passed = [line[6:].split("  ")[0] for line in told.out.splitlines() if line.startswith("pass")]
    assert passed == [subject.title for subject in SUBJECTS]
    assert "Passed: all 8 of 8 checks" in told.out
    assert "fast paths …" in told.err
    assert "\x1b" not in told.err
    assert str(paths.selftest_dir() / "report.txt") in told.err


def test_a_failure_is_the_exit_code_and_the_fields_are_those_promised(
    scripted: pytest.MonkeyPatch, call: Call, tmp_path: Path
) -> None:
    scripted.setenv("SCRIPTED_PLAN", json.dumps({"memory": "signal", "driver": "not applicable"}))
    report = tmp_path / "mine.txt"
    told = call("selftest", "--json", "--report", str(report))
    found = told.json
    assert (told.code, list(found)) == (1, ["device", "checks", "passed"])
    assert (found["passed"], found["device"]["name"]) == (False, "Card 9000")
    assert {check["name"]: check["result"] for check in found["checks"]} == {
        subject.name: {"memory": "fail", "driver": "not applicable"}.get(subject.name, "pass") for subject in SUBJECTS
    }
    assert all(list(check) == ["name", "result", "detail", "seconds"] for check in found["checks"])
    text = report.read_text(encoding="utf-8")
    assert "FAIL  memory" in text
    assert str(paths.home()) not in text
    assert str(tmp_path) not in text


@cases(("name", "said"), [("no/report.txt", "No such file or directory"), (".", "is not a file")])
def test_a_place_for_the_report_that_cannot_be_is_refused_at_once(
    call: Call, tmp_path: Path, name: str, said: str
) -> None:
    assert "driver" not in call.refused(said, "selftest", "--report", f"{tmp_path}/{name}").err
    assert not paths.selftest_dir().exists()
    assert os.listdir(tmp_path) == []


@cases("words", [[], ["--json"]])
def test_what_was_found_is_reported_where_the_report_cannot_be_written(call: Call, words: list[str]) -> None:
    (paths.make_private_dir(paths.selftest_dir()) / "report.txt").mkdir(exist_ok=True)
    told = call("selftest", *words)
    assert (told.code, "cannot be written" in told.err) == (1, True)
    assert told.json["passed"] if words else "Passed: all 8 of 8 checks" in told.out


def test_the_report_is_written_where_the_output_cannot_be(scripted: pytest.MonkeyPatch) -> None:
    scripted.setattr("core.commands.selftest.emit", Mock(side_effect=BrokenPipeError))
    args = command_parser("selftest").parse_args(["--json"])
    with pytest.raises(BrokenPipeError):
        args.run_command(args)
    assert (paths.selftest_dir() / "report.txt").is_file()
