"""The app in a real pseudo-terminal: it restores the terminal whatever ends it, and starts again where it was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.runs.record.store import Run
from tests.tui.config_panes import write_config
from tests.tui.harness import HOSTILE
from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import ROOT, Terminal, app_environment
from tests.waiting import wait_for

ENTER_ALTERNATE, LEAVE_ALTERNATE = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.fixture
def live_run(home: Path) -> Iterator[tuple[Run, subprocess.Popen[bytes]]]:
    """A run that another process is writing."""
    command = [sys.executable, "-m", "tests.tui.scripted_run", str(home), "--before", "20", "--seconds", "0.1"]
    writer = subprocess.Popen([*command, "--id", "20261124-143600-tickets"], cwd=ROOT)
    run = Run(home / "runs" / "20261124-143600-tickets")
    wait_for(lambda: run.state().state == "training" and run.state().step >= 20, 20, "the scripted run to train")
    yield run, writer
    writer.terminate()
    writer.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)])
def test_a_signal_restores_the_terminal_and_spares_the_run(
    environment: dict[str, str], live_run: tuple[Run, subprocess.Popen[bytes]], number: int
) -> None:
    run, writer = live_run
    with Terminal.app(environment=environment, size=(100, 30)) as terminal:
        terminal.wait_for_text("3 Train · 20261124-143600-tickets")
        terminal.signal(number)
        assert terminal.wait_for_end() == 0
        after = terminal.output[terminal.output.rindex(LEAVE_ALTERNATE) :].decode()
        assert "Come back with: localtune-tui" in after
        assert after.count("\n") == 1
        for sequence in (b"\x1b[?1000l", b"\x1b[?25h"):
            assert sequence in terminal.output
    assert writer.poll() is None
    step = run.state().step
    wait_for(lambda: run.state().step > step, 10, "the run to go on")


def test_a_terminal_that_is_gone_ends_the_app_and_spares_the_run(
    environment: dict[str, str], live_run: tuple[Run, subprocess.Popen[bytes]]
) -> None:
    run, writer = live_run
    with Terminal.app(environment=environment) as terminal:
        terminal.wait_for_text("3 Train · 20261124-143600-tickets")
        terminal.hang_up()
        terminal.wait_for_end(10)
    assert writer.poll() is None
    step = run.state().step
    wait_for(lambda: run.state().step > step, 10, "the run to go on")


@pytest.mark.long
def test_killed_and_started_again_it_shows_the_whole_curve(
    environment: dict[str, str], live_run: tuple[Run, subprocess.Popen[bytes]]
) -> None:
    run, _ = live_run
    with Terminal.app(environment=environment, size=(100, 30)) as terminal:
        terminal.wait_for_text("3 Train · 20261124-143600-tickets")
        terminal.signal(signal.SIGKILL)
        terminal.wait_for_end()
    with Terminal.app(environment=environment, size=(100, 30)) as terminal:
        terminal.wait_for_text("3 Train · 20261124-143600-tickets")
        step = run.state().step
        terminal.wait_for(lambda: (shown := re.search(r"(\d+)/600", terminal.text)) and int(shown[1]) >= step)
        # The curve begins at the left edge of the chart: the history is there, not only the new steps.
        plot = [line.partition("│")[2].partition("│")[2] for line in terminal.text.splitlines()]
        assert any(line[:3].strip() for line in plot)


def test_nothing_hostile_reaches_the_terminal(environment: dict[str, str], home: Path) -> None:
    script = ScriptedRun(home).train_to(10).phase("rehearsing", detail=HOSTILE)
    script.end("failed", f"reason {HOSTILE}", f"hint {HOSTILE}")
    with Terminal.app("--run", "latest", environment=environment, size=(120, 34)) as terminal:
        terminal.wait_for_text("failed at step 10")
        terminal.press("5", until="✗ failed")
        terminal.press("q")
        terminal.wait_for_end()
        for sequence in (b"\x1b]52", b"\xc2\x9b", b"\x00", b"\x7f", "\u202e".encode(), "\u2066".encode()):
            assert sequence not in terminal.output


def app(home: Path, directory: Path) -> Terminal:
    """The app, started in a directory without any argument."""
    script = f"import os, runpy; os.chdir({str(directory)!r}); runpy.run_module('tui', run_name='__main__')"
    return Terminal([sys.executable, "-P", "-c", script], (100, 30), {**app_environment(home), "PYTHONPATH": str(ROOT)})


def use_rows(terminal: Terminal, path: Path) -> None:
    """Open a file of three rows in the Data pane, and train on it."""
    terminal.press("1", until="No data yet.")
    terminal.press("o", until="enter accepts")
    terminal.press(str(path), until="rows.jsonl")
    terminal.press("\r", until="· 3 rows")
    terminal.press("t", until="rows •not saved")


def test_killed_it_comes_back_to_row_edits_and_pane(home: Path, tmp_path: Path) -> None:
    write_config(tmp_path)
    session = home / "session.json"

    def row() -> object:
        place = json.loads(session.read_text())["data"] if session.exists() else None
        return place["row"] if place is not None else None

    with app(home, tmp_path) as terminal:
        terminal.wait_for_text("^p palette")
        use_rows(terminal, tmp_path / "rows.jsonl")
        terminal.press("G")
        terminal.wait_for(lambda: row() == 2)
        terminal.signal(signal.SIGKILL)
        terminal.wait_for_end()
    with app(home, tmp_path) as terminal:
        terminal.wait_for_text("row 3")
        terminal.wait_for_text("rows •not saved")
        terminal.wait_for_text("1 Data · rows.jsonl")
        terminal.press("q")
        assert terminal.wait_for_end() == 0
        assert b"The configuration (rows) is kept, but not in a file." in terminal.output
    assert os.listdir(home / "drafts")
    with app(home, tmp_path) as terminal:
        terminal.wait_for_text("row 3")


@pytest.mark.long
def test_two_apps_at_once_leave_one_whole_session(home: Path, tmp_path: Path) -> None:
    write_config(tmp_path)
    with app(home, tmp_path) as first, app(home, tmp_path) as second:
        for terminal, key in ((first, "2"), (second, "5")):
            terminal.wait_for_text("^p palette")
            terminal.press(key)
        wait_for(lambda: (home / "session.json").exists(), 20, "a session")
        for terminal in (first, second):
            terminal.press("q")
            assert terminal.wait_for_end() == 0
    assert json.loads((home / "session.json").read_text())["pane"] == "runs"


def test_where_its_directory_is_deleted_it_goes_on_and_keeps_what_is_unsaved(home: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    write_config(tmp_path)
    with app(home, here) as terminal:
        terminal.wait_for_text("^p palette")
        here.rmdir()
        for number, title in (("1", "1 Data"), ("2", "2 Config"), ("3", "3 Train")):
            terminal.press(number, until=f"─ {title}")
        use_rows(terminal, tmp_path / "rows.jsonl")
        terminal.press("q")
        assert terminal.wait_for_end() == 0
    assert os.listdir(home / "drafts")


def test_in_a_directory_that_was_deleted_it_says_so(home: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    script = f"""
import os, runpy
os.chdir({str(here)!r})
os.rmdir({str(here)!r})
runpy.run_module("tui", run_name="__main__")
"""
    with Terminal([sys.executable, "-c", script], (100, 30), app_environment(home)) as terminal:
        assert terminal.wait_for_end() == 1
        assert "The current directory has been deleted." in terminal.text
