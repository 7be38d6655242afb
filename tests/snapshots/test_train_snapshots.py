"""Snapshots of the end of a run, and of its answers over time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.runs import events
from tests.snapshots.conftest import MOMENT, Compare, until
from tests.tui.panes.train.test_pane import script_run
from tests.tui.scripted_run import GPU, ScriptedRun
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


@pytest.mark.parametrize("size", ["80x24", "200x50"])
def test_two_curves_and_a_cursor(snap_compare: Compare, app: LocaltuneApp, private_home: Path, size: str) -> None:
    script = ScriptedRun(private_home, total=120, start=MOMENT)
    script.begin()
    for step in range(1, 81):
        script.steps(step, step, **({"loss": math.nan} if 50 <= step < 56 else {}))
        script.hardware(replace(GPU, temperature_c=round(76 - 26 * math.exp(-step / 20))))
        if step % 20 == 0:
            script.checkpoint(step)
    for command in ("pause", "resume"):
        script.write(events.ControlEvent(t=script.pass_time(1), command=command, sender="socket", result="ok"))
    script.end("stopped", "stopped on request after step 80")
    app._run_name = "latest"
    keys = ["3", *"oooo", "left", "left", "left"]

    async def run(pilot: Pilot[Any]) -> None:
        await until("Kept is the checkpoint")(pilot)
        await until("temperature ", *keys)(pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)
