"""A clock that is set while a run is on: rates, order, signs of life and the result do not depend on it."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from core.launch.launcher import worker_environment
from core.runs.record.history import read_history
from core.runs.record.store import Run
from tests.e2e.workers import STEPS, Workers, adapter_bytes, kill, steps, wait_until_step

pytestmark = pytest.mark.long

DAY = 86_400.0
#: A C library that is preloaded: the time of day is off by the seconds in a file.
SHIM = Path(__file__).with_name("clock.c")


class Clock:
    """The time of day of the processes that are started with its variables.

    Args:
        directory: For the library.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "offset"
        self.set(0.0)
        library = directory / "clock.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
        self.variables = {"LD_PRELOAD": str(library), "TEST_CLOCK": str(self._file)}

    def set(self, seconds: float) -> None:
        """Be off by so many seconds from now on."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    if shutil.which("gcc") is None:
        pytest.skip("not run: there is no gcc to make a clock that jumps")
    return Clock(tmp_path)


def test_the_clock_of_the_test_jumps(clock: Clock) -> None:
    clock.set(-DAY)
    program = "import time; print(time.time())"
    variables = worker_environment() | clock.variables
    told = subprocess.run(["python3", "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert float(told.stdout) == pytest.approx(time.time() - DAY, abs=600)


def test_a_jumping_clock_changes_nothing(workers: Workers, clock: Clock, reference: Run) -> None:
    run = workers.start("jumping", clock.variables | workers.held_anew(22))
    for step, offset in ((3, DAY), (8, -DAY), (13, -400 * DAY), (18, DAY)):
        wait_until_step(run, step)
        clock.set(offset)
        wait_until_step(run, step + 1)
        assert run.state().state == "training", "neither hung nor lost"
    wait_until_step(run, 22)
    kill(run)
    assert run.state().state == "lost"
    workers.complete(run)
    assert adapter_bytes(run) == adapter_bytes(reference)
    done = steps(run)
    assert all(0 < event.seconds < 3600 and math.isfinite(event.tokens_per_second) for event in done)
    assert all(event.tokens_per_second > 0 for event in done)
    history = read_history(run)
    assert list(history.loss.steps) == list(range(1, STEPS + 1)), "in the order of steps, not of times"
    assert list(history.loss.values) == list(read_history(reference).loss.values)
    assert history.paused_seconds == 0
