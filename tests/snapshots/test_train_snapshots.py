"""Snapshots of the end of a run, and of its answers over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.snapshots.conftest import MOMENT, Compare, until
from tests.tui.panes.train.test_pane import script_run
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp

SIZES = {"80x24": (80, 24), "120x34": (120, 34), "200x50": (200, 50)}


@pytest.fixture
def finished(private_home: Path) -> None:
    """A finished run with answers."""
    script = script_run(private_home, start=MOMENT)
    script.hardware(energy_wh=9.1)
    script.end("finished")


@pytest.mark.parametrize("size", SIZES)
def test_finished(snap_compare: Compare, app: LocaltuneApp, finished: None, size: str) -> None:
    app._run_name = "latest"
    assert snap_compare(app, terminal_size=SIZES[size], run_before=until("use it elsewhere", "3"))


@pytest.mark.parametrize("size", ["80x24", "120x34"])
def test_answers(snap_compare: Compare, app: LocaltuneApp, finished: None, size: str) -> None:
    app._run_name = "latest"

    async def run(pilot: Pilot[Any]) -> None:
        await until("use it elsewhere")(pilot)
        await until("step 60  ✓", "a")(pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)


def test_stopped(snap_compare: Compare, app: LocaltuneApp, private_home: Path) -> None:
    script = ScriptedRun(private_home, total=25, start=MOMENT)
    script.begin()
    script.steps(1, 15)
    script.checkpoint(15)
    script.end("stopped", "stopped on request after step 15")
    app._run_name = "latest"
    assert snap_compare(app, run_before=until("Kept is the checkpoint"))
