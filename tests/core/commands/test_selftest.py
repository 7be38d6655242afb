from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from core import paths
from core.commands.command_line import command_parser
from core.errors import UserError
from core.selftest import job
from core.selftest.report import SUBJECTS
from tests.cases import cases


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A self-test that passes, with a starter model that is there."""
    monkeypatch.setattr(job, "PROGRAM", "tests.core.selftest.scripted_check")
    monkeypatch.setattr(job, "read_record", lambda _: {})
    monkeypatch.setenv("SCRIPTED_PLAN", "{}")
    return monkeypatch


def run(*words: str) -> int:
    args = command_parser("selftest").parse_args(list(words))
    code: int = args.run_command(args)
    return code


def test_a_table_progress_beside_it_and_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out, err = capsys.readouterr()
    assert out.startswith("Card 9000\n")
    assert [line[6:].split("  ")[0] for line in out.splitlines() if line.startswith("pass")] == [
        subject.title for subject in SUBJECTS
    ]
    assert "Passed: all 7 of 7 checks" in out
    assert "fast paths …" in err
    assert "\x1b" not in err
    assert str(paths.selftest_dir() / "report.txt") in err


def test_a_failure_is_the_exit_code_and_the_fields_are_those_promised(
    scripted: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scripted.setenv("SCRIPTED_PLAN", json.dumps({"memory": "signal", "driver": "not applicable"}))
    report = tmp_path / "mine.txt"
    assert run("--json", "--report", str(report)) == 1
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["device", "checks", "passed"]
    assert found["passed"] is False
    assert found["device"]["name"] == "Card 9000"
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
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run("--report", f"{tmp_path}/{name}")
    assert "driver" not in capsys.readouterr().err
    assert not paths.selftest_dir().exists()
    assert os.listdir(tmp_path) == []


@cases("words", [[], ["--json"]])
def test_what_was_found_is_told_where_the_report_cannot_be_written(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (paths.make_private_dir(paths.selftest_dir()) / "report.txt").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="cannot be written"):
        run(*words)
    out = capsys.readouterr().out
    assert json.loads(out)["passed"] if words else "Passed: all 7 of 7 checks" in out


def test_the_report_is_written_where_the_output_cannot_be(scripted: pytest.MonkeyPatch) -> None:
    def gone(_: object) -> None:
        raise BrokenPipeError

    scripted.setattr("core.commands.selftest.emit", gone)
    with pytest.raises(BrokenPipeError):
        run("--json")
    assert (paths.selftest_dir() / "report.txt").is_file()
