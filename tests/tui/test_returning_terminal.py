"""The app in a real pseudo-terminal, killed without a warning and started again: everything is where it was."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.tui.config_panes import write_config
from tests.tui.terminal import ROOT, Terminal, app_environment
from tests.waiting import wait_for


def app(home: Path, directory: Path) -> Terminal:
    """The app, started in a directory without any argument."""
    script = f"import os, runpy; os.chdir({str(directory)!r}); runpy.run_module('tui', run_name='__main__')"
    return Terminal([sys.executable, "-P", "-c", script], (100, 30), {**app_environment(home), "PYTHONPATH": str(ROOT)})


def test_killed_it_comes_back_to_row_edits_and_pane(home: Path, tmp_path: Path) -> None:
    write_config(tmp_path)
    session = home / "session.json"

    def row() -> object:
        place = json.loads(session.read_text())["data"] if session.exists() else None
        return place["row"] if place is not None else None

    with app(home, tmp_path) as terminal:
        terminal.wait_for_text("5 Runs")
        terminal.press("1")
        terminal.wait_for_text("No data yet.")
        terminal.press("o")
        terminal.wait_for_text("enter accepts")
        terminal.press(f"{tmp_path}/rows.jsonl")
        terminal.wait_for_text("rows.jsonl")
        terminal.press("\r")
        terminal.wait_for_text("· 3 rows")
        terminal.press("t")
        terminal.wait_for_text("rows •not saved")
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
        assert b"The configuration (rows) is kept, without a file." in terminal.output
    assert os.listdir(home / "drafts")
    with app(home, tmp_path) as terminal:
        terminal.wait_for_text("row 3")


@pytest.mark.long
def test_two_apps_at_once_leave_one_whole_session(home: Path, tmp_path: Path) -> None:
    write_config(tmp_path)
    with app(home, tmp_path) as first, app(home, tmp_path) as second:
        for terminal, key in ((first, "2"), (second, "5")):
            terminal.wait_for_text("5 Runs")
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
        terminal.wait_for_text("5 Runs")
        here.rmdir()
        for number, title in (("1", "1 Data"), ("2", "2 Config"), ("3", "3 Train")):
            terminal.press(number)
            terminal.wait_for_text(f"─ {title}")
        terminal.press("1")
        terminal.wait_for_text("─ 1 Data")
        terminal.press("o")
        terminal.wait_for_text("enter accepts")
        terminal.press(f"{tmp_path}/rows.jsonl")
        terminal.wait_for_text("rows.jsonl")
        terminal.press("\r")
        terminal.wait_for_text("· 3 rows")
        terminal.press("t")
        terminal.wait_for_text("rows •not saved")
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
