from __future__ import annotations

import json
from pathlib import Path

import pytest

from core import paths
from core.commands.command_line import command_parser
from core.selftest import job
from core.selftest.checks import SUBJECTS


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A self-test that passes, with a starter model that is there."""
    monkeypatch.setattr(job, "MODULE", "tests.core.selftest.scripted_check")
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
