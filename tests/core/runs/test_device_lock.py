"""Device locks between real processes: alone, beside each other, and gone with the process that held them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.hardware.obstacle import Sight
from core.hardware.visible import Identity
from core.helper import finding_core
from core.runs.device_lock import Hold, lock_path, occupant, run_devices, take_alone, take_beside
from core.runs.process import hostname, own_identity
from core.runs.state import RunState
from core.runs.store import make_run
from tests.core.queue.helpers import config_for
from tests.waiting import wait_for

#: Takes devices, says what it has got, and holds them until its input ends.
HOLDER = """
import sys
from core.runs.device_lock import take_alone, take_beside
how, run, *devices = sys.argv[1:]
held = (take_alone if how == "alone" else take_beside)(devices, run)
print("taken" if held is None else f"held {held.beside}", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own."""
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@contextmanager
def holder(how: str, run: str, *devices: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Another process that takes devices; with what it says."""
    command = [sys.executable, "-c", HOLDER, how, run, *devices]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=finding_core(os.environ)
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


def live(run_id: str) -> None:
    """Have a run of this id be live: its process is that of the tests."""
    run = make_run(run_id, "")
    pid, identity = own_identity()
    RunState(state="training", pid=pid, pid_started=identity, host=hostname(), updated=1.0).write(run.state_path)


def test_a_device_that_one_has_alone_is_nobody_elses_until_its_process_is_gone() -> None:
    live("first")
    with holder("alone", "first", "GPU-1") as (said, process):
        assert said == "held"
        assert take_alone(["GPU-1"], "second") is None
        assert occupant(["GPU-1"]) == "first"
        assert occupant(["GPU-2"]) is None
        process.kill()
        process.wait()
        held = take_alone(["GPU-1"], "second")
        assert held is not None
        held.release()
    assert occupant(["GPU-1"]) is None


def test_all_devices_are_taken_or_none() -> None:
    with holder("alone", "first", "GPU-2"):
        assert take_alone(["GPU-1", "GPU-2"], "second") is None
        assert occupant(["GPU-1"]) is None


def test_runs_by_hand_share_a_device_and_one_that_wants_it_alone_waits_for_all_of_them() -> None:
    live("first")
    with holder("beside", "first", "cpu") as (said, process):
        assert said == "held"
        second = take_beside(["cpu"], "second")
        assert second.beside == "first"
        process.kill()
        process.wait()
        assert take_alone(["cpu"], "third") is None
        second.release()
        held = take_alone(["cpu"], "third")
        assert held is not None
        held.release()


def test_what_one_has_alone_is_taken_by_a_run_beside_it_when_that_has_ended() -> None:
    live("first")
    with holder("alone", "first", "cpu") as (_, process):
        second = take_beside(["cpu"], "second")
        assert second.beside == "first"
        process.kill()
        process.wait()
        wait_for(lambda: lock_path("cpu").read_text() == "second", 20, "the lock to be taken over")
        assert take_alone(["cpu"], "third") is None
        second.release()


def test_a_name_in_the_file_that_is_no_live_run_is_not_told() -> None:
    with holder("beside", "gone", "cpu"):
        assert take_beside(["cpu"], "second").beside == ""
        assert occupant(["cpu"]) == "another run"
        lock_path("cpu").write_text("../\x1b[2J")
        assert occupant(["cpu"]) == "another run"


def test_a_lock_that_cannot_be_made_keeps_nobody_from_training(home: Path) -> None:
    home.mkdir()
    (home / "devices").write_text("no directory")
    assert take_alone(["cpu"], "first") == Hold()
    assert take_beside(["cpu"], "first") == Hold()
    assert occupant(["cpu"]) is None


def test_the_name_of_an_instance_of_a_card_makes_no_directory() -> None:
    assert lock_path("MIG-GPU-1/2/0").parent == lock_path("cpu").parent


@pytest.mark.parametrize(
    ("sections", "environment", "devices"),
    [
        ({}, {}, ["GPU-a"]),
        ({}, {"CUDA_VISIBLE_DEVICES": "1"}, ["MIG-b"]),
        ({}, {"CUDA_VISIBLE_DEVICES": ""}, ["cpu"]),
        ({"hardware": {"gpu": "1"}}, {}, ["MIG-b"]),
        ({"distributed": {"gpus": "all"}}, {}, ["GPU-a", "MIG-b", "2"]),
        ({"distributed": {"gpus": ["2", "0"]}}, {}, ["2", "GPU-a"]),
        ({"distributed": {"processes": 2}}, {}, ["GPU-a", "MIG-b"]),
    ],
)
def test_the_devices_of_a_run_are_its_cards(
    sections: dict[str, Any], environment: dict[str, str], devices: list[str]
) -> None:
    sight = Sight(cards=(Identity(0, "GPU-a"), Identity(1, "GPU-b", ("MIG-b",)), Identity(2)))
    config = config_for(**{"hardware": {"device": "auto"}} | sections)
    assert run_devices(config, sight, environment) == devices


def test_a_run_on_the_cpu_has_one_device_however_many_processes_it_has() -> None:
    assert run_devices(config_for()) == ["cpu"]
    assert run_devices(config_for(distributed={"processes": 2})) == ["cpu"]
