"""Claims of others on the device of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from core.config.schema import ParkingSection
from core.hardware.claims import Claim, commands, find_claim, has_conditions, running_program
from core.hardware.snapshot import Device, GpuProcess
from tests.cases import cases
from tests.waiting import wait_for

EVENING = datetime(2026, 11, 27, 19, 30).timestamp()

LINES = [["systemd"], ["ollama", "serve"], ["steam.sh", "-silent"], ["python3", "-m", "http.server"]]


@cases(
    ("names", "found"),
    [
        (["ollama"], "ollama"),
        (["ollama runner"], None),
        (["ollama serve"], "ollama serve"),
        (["steam"], None),
        (["blender", "python3 -m"], "python3 -m"),
        (["serve"], None),
        (["systemd now"], None),
    ],
)
def test_a_program_is_named_by_the_beginning_of_its_command_line(names: list[str], found: str | None) -> None:
    assert running_program(names, LINES) == found


def test_a_process_of_this_machine_is_found_while_it_runs(tmp_path: Path) -> None:
    # Of its own name: the same tests may be running beside these.
    program = tmp_path / f"some-game-or-other-{os.getpid()}"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    parking = ParkingSection(programs=program.name)
    assert find_claim(parking, EVENING, None) is None
    process = subprocess.Popen([program, "600"])
    try:
        wait_for(lambda: find_claim(parking, EVENING, None), 20, "the program to be seen")
        assert find_claim(parking, EVENING, None) == Claim("another program", f"{program.name} is running")
        assert [program.name, "600"] in [list(line) for line in commands()]
    finally:
        process.kill()
    # A zombie process does not count as running.
    wait_for(lambda: find_claim(parking, EVENING, None) is None, 20, "the program to be gone")
    process.wait()


def test_hours_claim_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    parking = ParkingSection(hours=["08:00-09:00", "18:00-23:00"])
    assert find_claim(parking, EVENING, None) == Claim(
        "the schedule", "from 18:00 to 23:00 the device is not the run's"
    )
    assert find_claim(parking, EVENING + 4 * 3600, None) is None
    assert has_conditions(parking)


def test_memory_that_other_processes_hold_is_a_claim() -> None:
    processes = [GpuProcess(os.getpid(), 20 << 30), GpuProcess(1, 3 * 10**9), GpuProcess(2, None)]
    card = Device(index=0, kind="cuda", name="card", processes=processes)
    parking = ParkingSection(memory_gb=3)
    assert find_claim(parking, EVENING, card) == Claim("another program", "other programs hold 3.0 GB of the card")
    assert find_claim(ParkingSection(memory_gb=3.1), EVENING, card) is None
    assert has_conditions(parking)
    assert not has_conditions(ParkingSection())
    assert find_claim(parking, EVENING, None) is None
