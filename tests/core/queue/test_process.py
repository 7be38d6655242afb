"""The runner as a process, with workers that train nothing: killed, doubled, stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from core.helper import finding_core
from core.queue import status
from core.queue.status import read_status, start_runner, stop_runner, try_runner_lock
from tests.core.queue.helpers import add, states
from tests.core.runs.helpers import there
from tests.waiting import wait_for

QUICK = [sys.executable, "-m", "tests.core.queue.quick_runner"]
pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "runner_command", lambda: QUICK)


def begin_runner() -> subprocess.Popen[str]:
    """A runner that is a child of the test."""
    environment = finding_core(os.environ)
    return subprocess.Popen(QUICK, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for_states(wanted: dict[int, str]) -> None:
    wait_for(lambda: states() == wanted, 30, f"the states {wanted}")


def starts(home: Path) -> list[str]:
    path = home / "starts"
    return [line.split()[0].rpartition("-")[2] for line in path.read_text().splitlines()] if path.exists() else []


def test_three_runs_come_in_order_and_the_runner_ends(home: Path) -> None:
    assert start_runner()[1], "one with nothing to do begins, and ends at once"
    wait_for(lambda: read_status() is None, 20, "the end of the runner")
    add("a", "b", "c")
    assert start_runner()[1]
    assert start_runner()[1] is False
    wait_for_states({1: "running", 2: "waiting", 3: "waiting"})
    wait_for(lambda: (found := read_status()) is not None and "follows" in found.doing, 20, "the runner to follow it")
    (home / "go").touch()
    wait_for_states({1: "done", 2: "done", 3: "done"})
    wait_for(lambda: read_status() is None, 20, "the end of the runner")
    assert starts(home) == ["a", "b", "c"]
    assert not (home / "overlaps").exists()


def test_stopping_the_runner_leaves_the_run_on_and_the_next_runner_takes_it_over(home: Path) -> None:
    add("a", "b")
    start_runner()
    wait_for_states({1: "running", 2: "waiting"})
    assert stop_runner() is True
    assert stop_runner() is False
    assert states() == {1: "running", 2: "waiting"}
    start_runner()
    (home / "go").touch()
    wait_for_states({1: "done", 2: "done"})
    assert starts(home) == ["a", "b"]


# Every moment is tried in one process: test_kills_modelled.py.
def test_runners_that_are_killed_start_nothing_twice_and_lose_nothing(home: Path) -> None:
    add("a", "b", "c")
    dice = random.Random(7)
    for _ in range(3):
        runner = begin_runner()
        assert runner.stdout is not None
        assert "begins" in runner.stdout.readline()
        try:
            # It does a step with an entry about every 20 ms from here on.
            runner.wait(dice.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            os.kill(runner.pid, signal.SIGKILL)
            runner.wait()
        if dice.random() < 0.2:
            (home / "go").touch()
    (home / "go").touch()
    start_runner()
    wait_for_states({1: "done", 2: "done", 3: "done"})
    assert starts(home) == ["a", "b", "c"]
    assert not (home / "overlaps").exists()


def test_two_runners_at_once_are_one(home: Path) -> None:
    add("a", "b")
    runners = [begin_runner() for _ in range(3)]
    wait_for_states({1: "running", 2: "waiting"})
    wait_for(lambda: sum(runner.poll() == 0 for runner in runners) == 2, 20, "the end of two of them")
    (home / "go").touch()
    wait_for_states({1: "done", 2: "done"})
    said = [runner.communicate(timeout=60)[0] for runner in runners]
    assert sum("another runner is active" in text for text in said) == 2
    assert starts(home) == ["a", "b"]


def test_a_runner_on_another_machine_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_SECOND", 0.1)
    add("a")
    lock = there(try_runner_lock())  # as another machine has it
    with pytest.raises(UserError, match="on another machine"):
        start_runner()
    assert states() == {1: "waiting"}
    os.close(lock)
    started, is_new = start_runner()
    assert (started.pid_started is not None, is_new) == (True, True)
    (home / "go").touch()
    wait_for_states({1: "done"})


def test_a_runner_that_does_not_begin_is_reported_with_its_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "runner_command", lambda: [sys.executable, "-c", "raise SystemExit('no such thing')"])
    with pytest.raises(UserError, match="has not begun") as error:
        start_runner()
    assert "no such thing" in Path(error.value.hint.removeprefix("Its log is ").rstrip(".")).read_text()
