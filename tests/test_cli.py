"""The command line as a whole: its imports, its refusals, its exit codes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

from core import __version__
from core.commands import COMMANDS, common, load_command
from core.errors import UserError
from tests.cases import cases, tables
from tests.test_import_hygiene import HEAVY
from tui.__main__ import main

TABLES = tables(__file__)

ROOT = Path(__file__).parents[1]


def _start(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, from the root of the tree."""
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True}
    return subprocess.run(command, cwd=ROOT, text=True, timeout=60, check=False, **(streams | options))


def _run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return _start([sys.executable, "-m", "tui", *words], **options)


def _loaded(lines: Iterable[Sequence[str]]) -> dict[str, set[str]]:
    """The packages that each command line has imported first, all of them in one fresh process."""
    program = (
        "import json, sys\n"
        "from tui.__main__ import main\n"
        "loaded, found = set(), {}\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        main(words)\n"
        "    except SystemExit:\n        pass\n"
        "    now = {name.partition('.')[0] for name in sys.modules}\n"
        "    found[' '.join(words)] = sorted(now - loaded)\n"
        "    loaded = now\n"
        "print(json.dumps(found), file=sys.stderr)\n"
    )
    result = _start([sys.executable, "-c", program, json.dumps([list(words) for words in lines])])
    found: dict[str, list[str]] = json.loads(result.stderr.splitlines()[-1])
    return {line: set(packages) for line, packages in found.items()}


def test_help_and_version_load_nothing_heavy() -> None:
    loaded = _loaded([["--version"], ["--help"], *([name, "--help"] for name in COMMANDS), []])
    assert "argparse" in loaded["--version"]
    slow = HEAVY | {"pydantic", "rich", "textual", "tomlkit"}
    assert {line: found for line, packages in loaded.items() if (found := packages & slow)} == {}


def _refused(words: list[str]) -> int:
    """The exit code of a command line in this process that does not get as far as to return one."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


def test_version() -> None:
    result = _run("--version")
    assert (result.returncode, result.stdout) == (0, f"localtune-tui {__version__}\n")


@cases("name", COMMANDS)
def test_every_command_takes_json_and_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _refused([name, "--help"]) == 0
    assert "--json" in capsys.readouterr().out
    assert callable(load_command(name).run)


def test_the_app_needs_a_terminal() -> None:
    result = _run()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "needs a terminal" in result.stderr


@cases(("words", "said"), TABLES["wrong_usage_exits_with_2"])
def test_wrong_usage_exits_with_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _refused(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert "Traceback" not in told.err


def test_an_error_is_one_line_and_exits_with_1(tmp_path: Path) -> None:
    result = _run("watch", "latest", env=os.environ | {"LOCALTUNE_HOME": str(tmp_path)})
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("localtune-tui: There are no runs yet. ")
    assert result.stderr.count("\n") == 1


@cases(
    ("error", "code", "said"),
    [
        (UserError("bad \x1b]52;c;x\x07 name", "two\nlines"), 1, "bad \ufffd]52;c;x\ufffd name two"),
        (RuntimeError("unexpected"), 1, "RuntimeError: unexpected"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_an_exception_ends_a_command_in_a_line_that_is_safe_for_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    for debug in ("", "1"):
        monkeypatch.setenv("LOCALTUNE_DEBUG", debug)
        assert common.invoke(Mock(side_effect=error)) == code
        err = capsys.readouterr().err
        assert said in err
        assert "\x1b" not in err
        assert ("Traceback" in err) == (debug == "1" and isinstance(error, RuntimeError))
        assert err.count("\n") == 1 or "Traceback" in err


class Opened:
    """Stands in for the app: what each was opened with, with a mouse or without, and how it tokenizes."""

    all: ClassVar[list[tuple[object, ...]]] = []

    def __init__(
        self, config_path: Path | None, run: str | None = None, demo: bool = False, data: Path | None = None
    ) -> None:
        self.asked = (config_path, run, demo, data)

    def run(self, *, mouse: bool) -> None:
        self.all.append((*self.asked, mouse, os.environ.get("TOKENIZERS_PARALLELISM")))

    def last_words(self) -> str:
        return ""


def test_the_app_opens_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tui.app.LocaltuneApp", Opened)
    monkeypatch.setattr("tui.ending.end_process", int)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert main([]) == 2
    assert "TERM=dumb" in capsys.readouterr().err
    monkeypatch.setenv("TERM", "xterm-256color")
    # Set first, so that it is restored afterwards whatever the app does to it.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    config, rows, run = tmp_path / "a.toml", tmp_path / "faq.csv", tmp_path / "runs" / "20260101-101010-faq"
    config.write_text("")
    rows.write_text("question,answer\na,b\n")
    run.mkdir(parents=True)
    (run / "run.toml").write_text("")
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    for words, *opened in (
        ([], None, None, False, None, True),
        ([str(config)], config, None, False, None, True),
        (["--run", "latest"], None, "latest", False, None, True),
        (["--demo"], None, None, True, None, True),
        (["--no-mouse"], None, None, False, None, False),
        ([str(rows)], None, None, False, rows, True),
        ([str(tmp_path)], None, None, False, tmp_path, True),
        ([str(run)], None, str(run), False, None, True),
        ([run.name], None, run.name, False, None, True),
    ):
        assert main(words) == 0
        assert Opened.all.pop() == (*opened, "true"), words
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    assert main([]) == 0
    assert Opened.all.pop()[-1] == "false", "in one thread, unless the user says otherwise"


@cases(("name", "content", "said"), TABLES["files_that_the_app_cannot_open"])
def test_a_file_that_the_app_cannot_open_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    assert main([str(tmp_path / name)]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert said in told.err


# One that writes a result, one that writes an error, one that asks for a terminal.
@cases(
    ("words", "closed", "code"),
    [
        (["runs", "--json"], ">&-", 0),
        (["train", "missing.toml"], "2>&-", 1),
        ([], "<&-", 2),
        (["runs", "--json"], "<&- >&- 2>&-", 0),
    ],
)
def test_closed_standard_streams(words: list[str], closed: str, code: int) -> None:
    result = _start(["/bin/sh", "-c", f"{shlex.join([sys.executable, '-m', 'tui', *words])} {closed}"], stdin=None)
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert "mistake" not in result.stderr
