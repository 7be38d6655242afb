"""``completion``: completions of the real shells with the scripts."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.commands import COMMANDS
from core.commands.command_line import whole_parser
from core.commands.completion import SHELLS, arguments_of, completer, completion_script
from tests.cases import cases, tables

from .conftest import CommandLine

TABLES = tables(__file__)

#: Arguments with free text or a number, by command.
FREE = TABLES["free"]
RUN, ODD = "20260101-101010-faq", "20260102-101010-$(touch hacked) x"
Completer = Callable[[str], list[str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with files, and a home with two runs and a model."""
    home, work = tmp_path / "home", tmp_path / "work"
    for run in (RUN, ODD):
        (home / "runs" / run).mkdir(parents=True)
        (home / "runs" / run / "run.toml").touch()
    (home / "trash" / "20261126-203633" / "old-run").mkdir(parents=True)
    (home / "trash" / "20261126-203633" / "old-run" / "run.toml").touch()
    (home / "models" / "tiny").mkdir(parents=True)
    (home / "models" / "tiny" / "config.json").touch()
    (work / "rows").mkdir(parents=True)
    for name in ("faq.csv", "faq.toml", "axolotl.yml", "unsloth.ipynb", "notes.md"):
        (work / name).touch()
    monkeypatch.setenv("LOCALTUNE_HOME", str(home))
    monkeypatch.chdir(work)
    return tmp_path


def in_bash(place: Path) -> Completer:
    script = place / "completion.bash"
    script.write_text(completion_script("bash"), encoding="utf-8")

    def complete(line: str) -> list[str]:
        words = ["localtune-tui", *line.split(" ")[1:]]
        program = (
            f"source {shlex.quote(str(script))}\n"
            f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}\n"
            # There is no compopt outside of a real completion.
            "compopt() { :; }\n_localtune_tui localtune-tui\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
        )
        return run_shell("bash", "--norc", "-c", program)

    return complete


def in_fish(place: Path) -> Completer:
    script = place / "completion.fish"
    script.write_text(completion_script("fish"), encoding="utf-8")

    def complete(line: str) -> list[str]:
        program = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
        return [found.partition("\t")[0] for found in run_shell("fish", "--no-config", "-c", program)]

    return complete


def run_shell(*words: str) -> list[str]:
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    return [line for line in result.stdout.splitlines() if line]


class Zsh:
    """An interactive zsh in a terminal of its own, as only there it completes."""

    def __init__(self, place: Path) -> None:
        functions = place / "functions"
        functions.mkdir()
        (functions / "_localtune-tui").write_text(completion_script("zsh"), encoding="utf-8")
        self.rest = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="dumb", HOME=str(place), COLUMNS="200")
            os.execvp("zsh", ["zsh", "-f", "-i"])  # noqa: S606
        self.send(
            f"fpath=({functions} $fpath); autoload -U compinit; compinit -u -D; setopt nolistbeep autolist; "
            "zstyle ':completion:*' verbose no; unsetopt automenu; "
            # Lists the matches, one a line between marks, and inserts nothing.
            "_listed() { _main_complete; compstate[insert]=; compstate[list]='list force'; }; "
            "LISTMAX=0; zle -C listed complete-word _listed; bindkey '^X' listed; PS1='@@''> '\n"
        )
        # Keys typed before the line editor is there are the terminal's.
        self.read("@@> ")

    def send(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def read(self, until: str) -> str:
        """Output up to a text."""
        found, deadline = self.rest, time.monotonic() + 30
        while until not in found:
            assert time.monotonic() < deadline, found
            if select.select([self.terminal], [], [], 1.0)[0]:
                found += os.read(self.terminal, 65536).decode(errors="replace")
        text, _, self.rest = found.partition(until)
        return text

    def complete(self, line: str) -> list[str]:
        # The line is made a comment in the end, which marks where the answer is whole.
        self.send(f"{line}\x18\x01: \x05 '' EN''D\x15echo DO''NE\n")
        found = self.read("DONE\r\n")
        self.read("@@> ")
        return found.replace("\r", " ").replace("\n", " ").split()

    def close(self) -> None:
        os.close(self.terminal)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


CASES = TABLES["cases"]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes(shell: str, place: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    complete = in_bash(place) if shell == "bash" else in_fish(place)
    for line, wanted, unwanted in CASES:
        found = complete(line)
        assert set(wanted) <= set(found), line
        assert not set(unwanted) & set(found), line
    assert not (place / "work" / "hacked").exists()


def test_zsh_completes(place: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    zsh = Zsh(place)
    try:
        for line, wanted, _ in CASES:
            found = zsh.complete(line)
            # A single match may have been put into the line.
            assert all(any(word in shown for shown in found) for word in wanted), (line, found)
    finally:
        zsh.close()
    assert not (place / "work" / "hacked").exists()


@cases("shell", SHELLS)
def test_a_script_names_every_command_and_starts_no_program(shell: str) -> None:
    script = completion_script(shell)
    assert all(name in script for name in COMMANDS)
    assert "python" not in script
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=script.encode(), check=True, timeout=60)


def test_every_argument_is_completed_or_free_text() -> None:
    open_ones = {
        (command, action.dest)
        for command, action in arguments_of(whole_parser())
        if action.choices is None and completer(command, action) is None and action.dest != "timeout"
    }
    assert open_ones == {(command, name) for command, names in FREE.items() for name in names.split()}


def test_json(cli: CommandLine) -> None:
    result = cli("completion", "bash", "--json")
    assert result.json == {"shell": "bash", "script": completion_script("bash")}
    assert cli("completion", "bash").out == completion_script("bash")
    assert cli("completion", "tcsh").code == 2
