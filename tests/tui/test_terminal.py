"""The app in a real pseudo-terminal: it starts, and it restores the terminal whatever ends it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.runs.record.store import Run
from tests.tui.harness import HOSTILE
from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import ROOT, Terminal
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


def test_it_starts_and_q_leaves_no_trace(environment: dict[str, str]) -> None:
    with Terminal.app(environment=environment) as terminal:
        terminal.wait_for_text("No run yet.")
        terminal.wait_for_text("5 Runs")
        terminal.press("q")
        assert terminal.wait_for_end() == 0
        assert ENTER_ALTERNATE in terminal.output
        assert LEAVE_ALTERNATE in terminal.output
        assert b"Traceback" not in terminal.output


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
        assert f"localtune-tui watch {run.id}" in after
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
        terminal.wait_for_text("Attached to 20261124-143600-tickets")
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
