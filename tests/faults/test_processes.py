"""Two apps on one run: both see it, both may ask, and either may be killed."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core.runs.record.events import ControlEvent
from tests.e2e.workers import PATIENCE, Workers, exit_code, only, signal_worker, wait_until_state, wait_until_step
from tests.tui.terminal import Terminal

pytestmark = pytest.mark.long


def header(app: Terminal) -> str:
    """The first line, which has the state of the run."""
    return app.text.partition("\n")[0]


def shows(app: Terminal, state: str) -> bool:
    """True if an app shows a state of the run."""
    return state in header(app)


def test_two_apps_on_one_run_see_what_either_asks_and_one_may_be_killed(workers: Workers, tmp_path: Path) -> None:
    endless: dict[str, Any] = {
        "train": {"max_steps": 100_000},
        "eval": {"every_steps": None},
        "checkpoint": {"every_steps": 100_000},
    }
    run = workers.start("shared", **endless)
    wait_until_step(run, 2)
    variables = {"LOCALTUNE_HOME": str(workers.home), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    with (
        Terminal.app("--run", run.id, size=(120, 34), environment=variables) as one,
        Terminal.app("--run", run.id, size=(120, 34), environment=variables) as other,
    ):
        for app in (one, other):
            app.wait_for(partial(shows, app, "training"), PATIENCE)
            app.press("3")
        one.press("p")
        for app in (one, other):
            app.wait_for(partial(shows, app, "paused"), PATIENCE)
        step = wait_until_state(run, "paused").step
        other.press("p")
        wait_until_step(run, step + 1)
        one.wait_for(partial(shows, one, "training"), PATIENCE)
        one.signal(signal.SIGKILL)
        one.wait_for_end()
        wait_until_step(run, run.state().step + 2)
        other.press("p")
        wait_until_state(run, "paused")
        other.wait_for(partial(shows, other, "paused"), PATIENCE)
    asked = [event.command for event in only(ControlEvent, run)]
    assert asked == ["pause", "resume", "pause"]
    signal_worker(run, signal.SIGTERM)
    assert exit_code(run) == 3
