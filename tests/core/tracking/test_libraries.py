"""The libraries themselves, where they are installed: they take what they are told, and open no connection."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from pathlib import Path

import pytest

from core.config.choices import TRACKERS, Tracker
from core.tracking.position import TrackerFiles
from tests.core.tracking.conftest import Desk, steps

#: Loaded by the interpreter of the tracker: writes down every socket that is made.
RECORDER = """
import os, sys

def hook(event, args):
    if event == "socket.__new__" or event.startswith(("socket.getaddrinfo", "socket.gethostbyname")):
        with open(os.environ["SOCKET_RECORD"], "a") as file:
            file.write(f"{event} {int(args[1]) if event == 'socket.__new__' else args[0]}\\n")

if "SOCKET_RECORD" in os.environ:
    sys.addaudithook(hook)
"""
_UNIX = "socket.__new__ 1"


def installed(tool: Tracker) -> None:
    """Skip where the library is not there."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"not run: {tool} is not installed (pip install 'localtune-tui[{tool}]')")


@pytest.mark.parametrize("tool", TRACKERS)
def test_a_run_is_taken_twice_without_a_connection(desk: Desk, tmp_path: Path, tool: Tracker) -> None:
    installed(tool)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "sitecustomize.py").write_text(RECORDER)
    record = tmp_path / "sockets"
    record.touch()
    desk.write(steps(1, 6))
    desk.finish(6)
    place = TrackerFiles(desk.run, tool)
    code, out = desk.track(place, SOCKET_RECORD=str(record))
    assert code == 0, out
    desk.write(steps(7, 7))
    code, out = desk.track(place, SOCKET_RECORD=str(record))
    assert code == 0, out
    assert (place.position().state, place.position().step, place.position().rows) == ("done", 7, 10)
    assert set(record.read_text().splitlines()) <= {_UNIX}
    assert any(os.scandir(place.data))


def test_trackio_has_every_step_once(desk: Desk) -> None:
    installed("trackio")
    desk.write(steps(1, 4))
    desk.finish(4)
    place = TrackerFiles(desk.run, "trackio")
    assert desk.track(place)[0] == 0
    desk.write(steps(5, 6))
    assert desk.track(place)[0] == 0
    with sqlite3.connect(place.data / "mine.db") as database:
        logged = database.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for step, text in logged if "train/loss" in str(text)] == [1, 2, 3, 4, 5, 6]
