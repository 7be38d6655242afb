"""Every argument of every command, taken from the parsers, with absurd values."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.commands import COMMANDS
from core.commands.command_line import command_parser
from core.errors import UserError
from core.runs.record.state import RunState
from tests.cases import cases, tables
from tests.core.commands.conftest import ROOT, Result
from tests.examples import examples
from tui import __main__ as program

NOT_UTF8 = os.fsdecode(b"caf\xe9.jsonl")
ROW = '{"prompt": "a", "completion": "b"}\n'
#: Seconds that any command line may take.
LONGEST = 20.0
VALUES = {
    **tables(__file__)["values"],
    "long": "a" * 5000,
    "a long path": "a/b/" * 2000,
    "not UTF-8": os.fsdecode(b"\xff=\xe9"),
    "a file that is not UTF-8": NOT_UTF8,
    "digits": "9" * 5000,
    "huge": "9" * 400,
    "hexadecimal": "train.max_steps=0x" + "f" * 100_000,
    "an option that is not UTF-8": f"data.train={NOT_UTF8}",
    "a table": "data.columns={" * 3000,
}
#: Values for the positional arguments that are not under test.
MEANT = {
    "config": "good.toml",
    "run": "20260101-000000-ended",
    "changes": "train.learning_rate=1e-4",
    "file": "r.jsonl",
}
#: Arguments that make a command use the others, without a lasting effect.
BESIDE = {"init": ["--data", "r.jsonl", "--out", "-"], "demo": ["--set", "train.max_steps=x"]}


class TooLongError(BaseException):
    """A command line that does not end."""


def refuse(*_: object, **__: object) -> NoReturn:
    raise UserError("Nothing is started here.", "")


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with all kinds of things in it, and a private home."""
    home = tmp_path / "home"
    run = home / "runs" / MEANT["run"]
    run.mkdir(parents=True)
    monkeypatch.setenv("LOCALTUNE_HOME", str(home))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    for name in ("r.jsonl", NOT_UTF8):
        (tmp_path / name).write_text(ROW * 3)
    for file in (tmp_path / "good.toml", run / "run.toml"):
        file.write_text(f'data.train = "{tmp_path / "r.jsonl"}"\n')
    RunState(state="stopped", reason="stopped on request", step=3).write(run / "state.json")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    os.symlink("loop", tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        yield tmp_path


@pytest.fixture
def place(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """These surroundings, where no process is started."""
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr("core.launch.launcher.start_run", refuse)
    monkeypatch.setattr("core.launch.launcher.continue_run", refuse)
    monkeypatch.setattr(sys, "stdin", open(os.devnull, encoding="utf-8"))  # noqa: SIM115 - until the test ends
    return surroundings


def carry_out(words: list[str], capsys: pytest.CaptureFixture[str]) -> Result:
    """A command line in this process, for so many seconds at most."""

    def give_up(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TooLongError(words)

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        code = program.main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    written = capsys.readouterr()
    return Result(code, written.out, written.err)


def check(words: list[str], result: Result) -> None:
    """It succeeded, or printed its error on one line, and wrote no character that a terminal acts on."""
    told = f"{[word[:60] for word in words]}: {result.code}, {result.err[-400:]!r}"
    assert result.code in (0, 1, 2), told
    assert "internal error" not in result.err, told
    assert "Traceback" not in result.err, told
    assert result.code == 0 or result.err.strip(), told
    acted_on = {c for c in result.out + result.err if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028"}
    assert acted_on <= {"\n", "\t"}, told
    assert len(result.err) < 20_000, told


def arguments(name: str) -> list[argparse.Action]:
    """The arguments of a command that take a value."""
    return [action for action in command_parser(name)._actions if action.nargs != 0]


def line_with(name: str, argument: argparse.Action, value: str) -> list[str]:
    """A command line in which one argument has a value, and the others are meant."""
    words = [name, *BESIDE.get(name, [])]
    if argument.option_strings:
        words.append(f"{argument.option_strings[-1]}={value}")
    others = [action for action in arguments(name) if not action.option_strings]
    return [*words, "--", *(value if other.dest == argument.dest else MEANT.get(other.dest, "x") for other in others)]


CASES = [(name, action.dest) for name in COMMANDS for action in arguments(name)]
#: Values as different from each other as eight can be; the others take the same ways again.
FEW = ("nothing", "a long path", "an escape", "not UTF-8", "nan", "digits", "a pipe", "a link to itself")
OTHERS = tuple(name for name in VALUES if name not in FEW)


def check_unknown(before: list[str], values: Iterable[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Any of these words, where no parser knows it, is refused in a line."""
    for value in (VALUES[name] for name in values):
        for words in ([*before, value, "--bogus"], [*before, f"--bogus={value}"], [*before, f"--js{value}"]):
            result = carry_out(words, capsys)
            check(words, result)
            # A word with a space is not an option, so a command may take it for its subject.
            assert result.code in (1, 2), words


@pytest.mark.parametrize("values", [FEW, pytest.param(OTHERS, marks=pytest.mark.long)], ids=["few", "others"])
@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in CASES))
def test_any_value_of_any_argument_is_taken_or_refused_in_a_line(
    name: str, values: Iterable[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for action in arguments(name):
        for value in values:
            if action.dest == "out" and VALUES[value].startswith("/dev/"):
                continue  # as root a mistake would cost the machine its device; the pipe is as good
            words = line_with(name, action, VALUES[value])
            check(words, carry_out(words, capsys))
    assert (place / "r.jsonl").read_text() == ROW * 3


@pytest.mark.parametrize("values", [FEW, pytest.param(OTHERS, marks=pytest.mark.long)], ids=["few", "others"])
@pytest.mark.usefixtures("place")
def test_words_that_no_parser_knows_are_refused_in_a_line(
    values: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for before in ([], ["good.toml"], ["--run"], ["runs"], ["nosuchcommand", "--bogus"]):
        check_unknown(before, values, capsys)
    for name in COMMANDS:
        check_unknown([name], FEW[:3] if values is FEW else values + FEW[3:], capsys)


HOSTILE = st.text(st.characters(), max_size=30) | st.binary(max_size=20).map(os.fsdecode)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(case=st.sampled_from(CASES), value=HOSTILE.filter(lambda text: "\0" not in text))
def test_any_text_is_taken_or_refused_in_a_line(
    place: Path, capsys: pytest.CaptureFixture[str], case: tuple[str, str], value: str
) -> None:
    action = next(action for action in arguments(case[0]) if action.dest == case[1])
    words = line_with(case[0], action, value)
    check(words, carry_out(words, capsys))
    assert place.is_dir()


def test_an_error_of_usage_shows_what_was_typed_without_what_a_terminal_acts_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = carry_out(["runs", "\x1b]0;pwn\x07\nb"], capsys).err
    assert err.endswith("error: unrecognized arguments: \ufffd]0;pwn\ufffd⏎b\n")
    assert carry_out(["a" * 5000], capsys).err.count("\n") <= 3
    assert place.is_dir()


def test_a_file_whose_name_is_not_utf8_is_looked_at(surroundings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = carry_out(["data", NOT_UTF8, "--json"], capsys)
    assert result.json["rows"] == 3
    assert result.json["sources"][0]["name"] == "caf\ufffd.jsonl"
    assert surroundings.is_dir()


@cases("what", ["an escape", "a long path", "not UTF-8", "a pipe", "a socket", "a link to itself", "zero", "memory"])
@pytest.mark.usefixtures("surroundings")
def test_what_is_no_data_is_refused_in_a_line(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = carry_out(["data", "--", VALUES[what]], capsys)
    check(["data", what], result)
    assert (result.code, result.err.count("\n")) == (1, 1)


def test_a_device_is_never_replaced_by_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.symlink("fifo", place / "link")
    for words in (["schema"], ["init", "--data", "r.jsonl", "--force"]):
        for out in ("fifo", "link", "loop", "dir", "sock"):
            result = carry_out([*words, f"--out={out}"], capsys)
            assert (result.code, out in result.err) == (1, True), result.err
    assert (place / "fifo").is_fifo()
    assert (place / "link").is_symlink()


def test_no_name_is_no_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # With a single run the empty text would be a part of its id alone, and stop it.
    for command in ("watch", "stop", "pause", "continue", "chat"):
        words = [command, "", *(["--prompt", "x"] if command == "chat" else [])]
        assert "is named" in carry_out(words, capsys).err
    assert place.is_dir()


def run_program(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A command line in a process of its own."""
    return subprocess.run(
        # Without the current directory among the places of modules, as the installed program is started.
        [sys.executable, "-P", "-c", "import sys; from tui.__main__ import main; sys.exit(main())", *words],
        timeout=60,
        check=False,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def environment(**changes: str | None) -> dict[str, str]:
    """Environment of this process with changes; None removes a variable."""
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return {name: value for name, value in whole.items() if value is not None}


def test_bytes_of_the_command_line_reach_no_terminal(tmp_path: Path) -> None:
    for words in ([b"\x1b]0;p\x07\xe9"], [b"runs", b"\xc2\x9b1m\xff"]):
        result = run_program(*map(os.fsdecode, words), env=environment(LOCALTUNE_HOME=str(tmp_path)))
        assert result.returncode == 2
        assert not {0x1B, 0x07} & set(result.stderr)
        assert not {"\x9b", "\udcff"} & set(result.stderr.decode())


@cases("words", [["init", "--data", "x"], ["train", "x"], ["chat", "x", "--prompt", "y"], ["runs"]])
def test_a_current_directory_that_is_gone_is_a_sentence(words: list[str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    result = run_program(*words, env=environment(LOCALTUNE_HOME=str(tmp_path)), cwd=gone, preexec_fn=gone.rmdir)
    assert b"mistake" not in result.stderr
    assert result.stderr.count(b"\n") == 1, result.stderr
    if words[0] == "init":
        assert b"The current directory has been deleted." in result.stderr


@cases("home", ["/dev/null", "/dev/null/x", "a\nb", os.fsdecode(b"\xe9"), "a" * 5000, "loop"])
@pytest.mark.usefixtures("surroundings")
def test_a_home_that_cannot_be_used_has_no_runs(
    home: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", home)
    for words in (["runs"], ["demo", "--set", "train.max_steps=x"], ["doctor", "--quick"]):
        result = carry_out(words, capsys)
        assert result.code in (0, 1)
        assert "mistake" not in result.err
        assert "Traceback" not in result.err


def test_standard_input_may_be_endless_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    for path, said in (("/dev/zero", b"has more than"), (str(tmp_path / "bytes"), b"no runs yet")):
        with open(path, "rb") as stdin:
            words = ["chat", "nope", "--prompt", "-"]
            result = run_program(*words, env=environment(LOCALTUNE_HOME=str(tmp_path)), stdin=stdin)
        assert (result.returncode, said in result.stderr) == (1, True), result.stderr


@cases("words", [["--help"], ["runs", "--help"], ["--version"], ["runs", "--json"]])
def test_output_goes_wherever_it_can_or_the_command_says_why_not(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        result = run_program(*words, env=environment(), stdout=full)
    said = b"localtune-tui: The output cannot be written: No space left on device. Make room, or send it elsewhere.\n"
    assert (result.returncode, result.stderr) == (1, said)
    narrow = run_program(*words, env=environment(PYTHONIOENCODING="ascii"))
    assert (narrow.returncode, narrow.stderr) == (0, b"")
