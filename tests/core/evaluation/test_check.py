"""A user's own check, as real programs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from core.errors import UserError
from core.evaluation.check import Check
from tests.cases import cases
from tests.waiting import has_ended, wait_for

FACTS = {
    "id": "1",
    "messages": [{"role": "user", "content": "a; touch x"}],
    "expected": "yes",
    "answer": "yes é \U0001f600",
}


def program(directory: Path, code: str, *words: str, seconds: float = 30.0) -> Check:
    path = directory / "check it.py"
    path.write_text(code, encoding="utf-8")
    return Check((sys.executable, str(path), *words), seconds)


@cases(
    ("code", "score"),
    [
        ("", 1.0),
        ("raise SystemExit(1)", 0.0),
        # A text is exit code 1.
        ("raise SystemExit('my file is gone')", 0.0),
        ("print(0.25)", 0.25),
        ("print('thinking')\nprint('1')\nprint()", 1.0),
        ("print('looks fine')", 1.0),
        ("print(0.9)\nraise SystemExit(1)", 0.0),
        (
            "import json, sys\nfacts = json.load(sys.stdin)\nprint(int(facts['answer'].startswith(facts['expected'])))",
            1.0,
        ),
        ("import os\nos.close(0)\nprint(0.5)", 0.5),
    ],
)
def test_the_last_line_or_the_exit_code_is_the_score(tmp_path: Path, code: str, score: float) -> None:
    assert program(tmp_path, code).score(FACTS) == score


@cases(
    ("code", "said"),
    [
        ("import sys\nprint('no \\x1b[2Jmodel', file=sys.stderr)\nsys.exit(7)", "ended with code 7: no"),
        ("import os\nos.abort()", "was ended by signal 6"),
        ("1 / 0", "failed: ZeroDivisionError: division by zero"),
        ("print(1.5)", "prints 1.5, and a score is from 0 to 1"),
        ("print('nan')", "prints nan"),
    ],
)
def test_a_check_that_does_not_work_is_reported(tmp_path: Path, code: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        program(tmp_path, code).score(FACTS)
    assert said in refused.value.message
    assert "\x1b" not in refused.value.message


def test_one_that_hangs_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    began = time.monotonic()
    with pytest.raises(UserError, match="takes more than 3 s"):
        # Long enough for two processes to begin on a busy machine.
        program(tmp_path, code, seconds=3.0).score(FACTS)
    assert time.monotonic() - began < 300
    child = int(note.read_text())
    wait_for(lambda: has_ended(child), 20, "the child to end")


def test_a_command_is_words_and_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "my check"
    script.write_text("#!/bin/sh\nprintf '%s' \"$1\" > told\necho 0.5\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    check = Check.parse("'./my check' '$HOME; touch broken' # no comment")
    assert check.command == (str(script), "$HOME; touch broken", "#", "no", "comment")
    assert check.score(FACTS) == 0.5
    assert (tmp_path / "told").read_text() == "$HOME; touch broken"
    assert not os.path.exists("broken")


@cases("text", ["", "  ", "'open", "no-such-program-here x"])
def test_what_is_no_command_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Check.parse(text)
