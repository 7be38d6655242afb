from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.notify import Notice, NotifySettings, load_notify_settings, notify
from core.notify.send import fill_in, send
from tests.cases import cases, tables
from tests.waiting import has_ended, wait_for

TABLES = tables(__file__)

RUN = "20261127-004446-faq"
#: A program that writes down how it was called.
WRITES = (
    "import json, os, sys; "
    "told = {name: value for name, value in os.environ.items() if name.startswith('LOCALTUNE_')}; "
    "json.dump([sys.argv[2:], told], open(sys.argv[1], 'w'))"
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "localtune").mkdir()
    return tmp_path / "localtune" / "notify.toml"


def test_a_command_gets_the_values_as_arguments_and_as_variables(tmp_path: Path) -> None:
    out = tmp_path / "called"
    command = (sys.executable, "-c", WRITES, str(out), "{run}", "{state}", "{reason}", "{reason}; as it is")
    notice = Notice("failed", 'the disk is "full" $(touch x) `id`', RUN)
    assert send(notice, NotifySettings(command)) == []
    arguments, variables = json.loads(out.read_text())
    assert arguments == [RUN, "failed", "the disk is ＂full＂ ＄（touch x） ｀id｀", "{reason}; as it is"]
    assert variables["LOCALTUNE_RUN"] == RUN
    assert variables["LOCALTUNE_REASON"] == 'the disk is "full" $(touch x) `id`'


@given(st.text(max_size=30), st.sampled_from(["{run}", "{state}", "{reason}", "{other}", "$(x)", "'", "\\"]))
def test_a_shell_takes_an_argument_for_words_and_nothing_else(reason: str, mark: str) -> None:
    notice = Notice("finished", reason + mark, RUN)
    (found,) = fill_in(["{reason}"], notice)
    assert shlex.split(found) == re.findall(r"[^ \t\r\n]+", found)
    assert not set(found) & set("!\"#$&'()*;<>?[\\]^`{|}~")
    assert not found.startswith(("-", "+", "@"))
    wanted = notice.values["reason"]
    assert len(found) == len(wanted)
    assert all(one == other or ord(one) == ord(other) + 0xFEE0 for one, other in zip(found, wanted, strict=True))


@cases(
    "reason", ["x; touch pwned", "$(touch pwned)", "`touch pwned`", "a > pwned", "a\n touch pwned", "a & touch pwned"]
)
@cases("name", ["--version", "@/etc/passwd", "-o pwned"])
def test_a_shell_runs_no_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, name: str) -> None:
    """As ssh does with those after the host."""
    monkeypatch.chdir(tmp_path)
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    notify_me = tmp_path / "notify-me"
    notify_me.write_text('#!/bin/sh\nprintf "%s|" "$@" > called\n')
    notify_me.chmod(0o755)
    command = (str(ssh), "host", str(notify_me), "{run}", "{reason}")
    assert send(Notice("failed", reason, name), NotifySettings(command)) == []
    assert (tmp_path / "called").read_text()[0] not in "-@"
    assert not (tmp_path / "pwned").exists()


def test_a_command_that_fails_or_is_not_there_is_reported() -> None:
    fails = NotifySettings((sys.executable, "-c", "raise SystemExit('no network')"))
    (problem,) = send(Notice("finished"), fails)
    assert problem == "the command of notify.toml ended with code 1: no network."
    (problem,) = send(Notice("finished"), NotifySettings(("/no/such/program",)))
    assert "/no/such/program: No such file or directory" in problem


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    script = f"sleep 600 & echo $! > {note}; wait"
    (problem,) = send(Notice("finished"), NotifySettings(("/bin/sh", "-c", script)), timeout=0.5)
    assert problem == "the command of notify.toml has not ended in 0.5 s and was killed."
    child = int(note.read_text())
    wait_for(lambda: has_ended(child), 10, "the end of the child")


def test_the_command_runs_in_the_background(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    out = tmp_path / "called"
    file.write_text(f"command = {json.dumps([sys.executable, '-c', WRITES, str(out), '{state}'])}\n")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    notify(Notice("finished", "all steps done", RUN))
    wait_for(lambda: out.exists() and out.read_text().endswith("]"), 20, "the call of the command")
    assert json.loads(out.read_text())[0] == ["finished"]


def test_notices_reach_the_desktop_by_notify_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, out = tmp_path / "notify-send", tmp_path / "out"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {out}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":0")
    assert send(Notice("failed", "--hint=x", RUN), NotifySettings(desktop=True)) == []
    assert out.read_text().splitlines() == ["--app-name=localtune-tui", "--", f"{RUN}: failed", "--hint=x"]
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    out.unlink()
    assert send(Notice("failed"), NotifySettings(desktop=True)) == []
    assert not out.exists()


@cases("command", TABLES["arguments_of_their_own"])
def test_an_argument_of_its_own_may_stand_for_a_value(file: Path, command: str) -> None:
    file.unlink(missing_ok=True)
    assert load_notify_settings() == NotifySettings(), "all is off without a file"
    file.write_text(f"command = {command}\nbell = true\ndesktop = true")
    assert load_notify_settings() == NotifySettings(tuple(json.loads(command)), True, True)


@cases(("text", "said"), TABLES["invalid_values"])
def test_invalid_values_are_one_sentence(file: Path, capfd: pytest.CaptureFixture[str], text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=r"notify\.toml") as error:
        load_notify_settings()
    assert said in error.value.message
    assert "\n" not in str(error.value)
    notify(Notice("finished"))
    assert "notice not sent" in capfd.readouterr().err, "invalid settings do not end a run"
