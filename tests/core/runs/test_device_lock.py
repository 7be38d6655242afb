"""Device locks between real processes: alone, beside each other, and gone with the process that held them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from core.hardware.obstacle import Sight
from core.hardware.visible import Identity
from core.helper import finding_core
from core.runs.control import devices
from core.runs.record.state import RunState, own_identity
from core.runs.record.store import make_run
from tests.cases import cases
from tests.core.queue.helpers import config_for
from tests.core.runs.helpers import live_state, there
from tests.waiting import wait_for

#: Takes devices, prints the result, and holds them until its input ends.
HOLDER = """
import sys
from core.runs.control.devices import take_alone, take_beside
how, run, *devices = sys.argv[1:]
held = (take_alone if how == "alone" else take_beside)(devices, run)
print("taken" if held is None else " ".join(["held", *held.beside]), flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(how: str, run: str, *names: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Another process that takes devices, and its output."""
    command = [sys.executable, "-c", HOLDER, how, run, *names]
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
    """Make a live run, whose process is that of the tests."""
    live_state(updated=1.0).write(make_run(run_id, "", "").state_path)


@contextmanager
def holding(how: Callable[[list[str], str], devices.Hold | None], run: str, *names: str) -> Iterator[tuple[str, ...]]:
    """Devices taken by this process for a run; yields the other runs there."""
    held = there(how(list(names), run))
    try:
        yield held.beside
    finally:
        held.release()


def test_a_device_that_one_has_alone_is_nobody_elses_until_its_process_is_gone() -> None:
    live("first")
    with holder("alone", "first", "GPU-1") as (said, process):
        assert said == "held"
        assert devices.take_alone(["GPU-1"], "second") is None
        assert devices.occupant(["GPU-1"]) == "first"
        assert devices.occupant(["GPU-2"]) is None
        process.kill()
        process.wait()
        with holding(devices.take_alone, "second", "GPU-1"):
            pass
    assert devices.occupant(["GPU-1"]) is None


def test_all_devices_are_taken_or_none() -> None:
    with holder("alone", "first", "GPU-2"):
        assert devices.take_alone(["GPU-1", "GPU-2"], "second") is None
        assert devices.occupant(["GPU-1"]) is None


def test_runs_by_hand_share_a_device_and_one_that_wants_it_alone_waits_for_all_of_them() -> None:
    live("first")
    with holder("beside", "first", "cpu") as (said, process):
        assert said == "held"
        second = devices.take_beside(["cpu"], "second")
        assert second.beside == ("first",)
        process.kill()
        process.wait()
        assert devices.take_alone(["cpu"], "third") is None
        second.release()
        with holding(devices.take_alone, "third", "cpu"):
            pass


def test_what_one_has_alone_is_taken_by_a_run_beside_it_when_that_has_ended() -> None:
    live("first")
    with holder("alone", "first", "cpu") as (_, process):
        second = devices.take_beside(["cpu"], "second")
        assert second.beside == ("first",)
        process.kill()
        process.wait()
        wait_for(lambda: takers("cpu") == 1, 20, "the lock to be taken over")
        assert devices.take_alone(["cpu"], "third") is None
        second.release()


def takers(device: str) -> int:
    """Number of processes that hold the lock of a device, by the kernel."""
    number = devices.lock_path(device).stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return sum(f":{number} " in line and "->" not in line for line in lines)


def test_a_third_run_learns_of_all_that_are_on_the_device(home: Path) -> None:
    for run in ("first", "second"):
        live(run)
    with holder("beside", "first", "cpu"), holder("beside", "second", "cpu") as (said, second):
        assert said == "held first"
        with holder("beside", "third", "cpu") as (said, _):
            assert said == "held first second"
        second.kill()
        second.wait()
        assert devices.take_beside(["cpu"], "fourth").beside == ("first",)
        RunState(state="finished").write(home / "runs/first/state.json")
        assert devices.occupant(["cpu"], "fourth") == "another run"


def test_a_run_that_waits_for_the_end_of_another_is_on_the_device_too() -> None:
    with holding(devices.take_alone, "first", "cpu"), holder("beside", "second", "cpu") as (said, _):
        assert said == "held first"
        with holder("beside", "third", "cpu") as (said, _):
            assert said == "held first second"


def test_a_parked_run_has_given_its_device_back(home: Path) -> None:
    live("first")
    with holding(devices.take_beside, "first", "cpu"), holding(devices.take_beside, "second", "cpu"):
        RunState(state="paused", parked="on request").write(home / "runs/first/state.json")
        with holding(devices.take_beside, "third", "cpu") as beside:
            assert beside == ("second",)


def test_several_processes_of_a_run_are_one_holder_on_all_its_devices() -> None:
    with holding(devices.take_beside, "first", "0", "1"), holding(devices.take_beside, "first", "1") as beside:
        assert beside == ()
        with holding(devices.take_beside, "second", "0", "1") as beside:
            assert beside == ("first",)


def test_a_run_that_had_the_device_in_the_past_is_not_told_though_its_process_is_alive() -> None:
    with holding(devices.take_alone, "first", "cpu"):
        pass
    with holding(devices.take_alone, "second", "cpu"):
        assert devices.occupant(["cpu"]) == "second"
        assert "first" not in devices.lock_path("cpu").read_text()


@cases(
    "line",
    [
        b"first",
        b"\xff\x00",
        b"[" * 60_000,
        b"9" * 5000,
        b'{"run": "first"}',
        b'{"run": "../\\u001b[2J", "pid": PID, "pid_started": "SINCE"}',
        b'{"run": "..", "pid": PID, "pid_started": "SINCE"}',
        b'{"run": "", "pid": PID, "pid_started": "SINCE"}',
        b'{"run": ["first"], "pid": PID, "pid_started": "SINCE"}',
        b'{"run": "first", "pid": PID, "pid_started": null}',
        b'{"run": "first", "pid": "PID", "pid_started": "SINCE"}',
        b'{"run": "first", "pid": PID, "pid_started": "another boot/1"}',
        b'{"run": "first", "pid": PI',
    ],
)
def test_a_line_in_the_file_that_is_no_live_holder_is_not_told(line: bytes) -> None:
    pid, identity = own_identity()
    with holding(devices.take_beside, "gone", "cpu"):
        devices.lock_path("cpu").write_bytes(
            line.replace(b"PID", str(pid).encode()).replace(b"SINCE", str(identity).encode())
        )
        assert devices.occupant(["cpu"]) == "another run"
        with holding(devices.take_beside, "second", "cpu") as beside:
            assert beside == ()
            assert devices.occupant(["cpu"]) == "second"


def test_machines_that_share_a_home_do_not_wait_for_each_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "devices").mkdir()
    former = (home / "devices/cpu.lock").open("w")  # of an earlier version, which had one folder
    fcntl.flock(former, fcntl.LOCK_EX)
    with holding(devices.take_alone, "first", "cpu"):
        assert devices.take_alone(["cpu"], "second") is None
        for name in ("tower", "../tower", "..", "", "tower/\0"):
            monkeypatch.setattr("socket.gethostname", lambda name=name: name)
            assert devices.lock_path("cpu").parent.parent == home / "devices"
            with holding(devices.take_alone, "second", "cpu"):
                assert devices.lock_path("cpu").is_file()
    former.close()


def test_a_name_that_a_full_disk_has_cut_short_does_not_take_the_next_one_with_it() -> None:
    with holding(devices.take_beside, "first", "cpu"):
        devices.lock_path("cpu").write_bytes(devices.lock_path("cpu").read_bytes() + b'{"run": "half')
        with holding(devices.take_beside, "second", "cpu"), holding(devices.take_beside, "third", "cpu") as beside:
            assert beside == ("first", "second")


def test_a_lock_that_cannot_be_made_keeps_nobody_from_training(home: Path) -> None:
    (home / "devices").write_text("no directory")
    assert devices.take_alone(["cpu"], "first") == devices.Hold()
    assert devices.take_beside(["cpu"], "first") == devices.Hold()
    assert devices.occupant(["cpu"]) is None


@cases(
    ("sections", "environment", "found"),
    [
        ({}, {}, ["GPU-a"]),
        ({}, {"CUDA_VISIBLE_DEVICES": "1"}, ["MIG-b"]),
        ({}, {"CUDA_VISIBLE_DEVICES": ""}, ["cpu"]),
        ({"hardware": {"gpu": "1"}}, {}, ["MIG-b"]),
        ({"distributed": {"gpus": "all"}}, {}, ["GPU-a", "MIG-b", "2"]),
        ({"distributed": {"gpus": ["2", "0"]}}, {}, ["2", "GPU-a"]),
        ({"distributed": {"processes": 2}}, {}, ["GPU-a", "MIG-b"]),
        ({"distributed": {"processes": 2}, "hardware": {"device": "cpu"}}, {}, ["cpu"]),
    ],
)
def test_the_devices_of_a_run(sections: dict[str, Any], environment: dict[str, str], found: list[str]) -> None:
    sight = Sight(cards=(Identity(0, "GPU-a"), Identity(1, "GPU-b", ("MIG-b",)), Identity(2)))
    config = config_for(**{"hardware": {"device": "auto"}} | sections)
    assert devices.run_devices(config, sight, environment) == found
    assert devices.lock_path("MIG-GPU-1/2/0").parent == devices.lock_path("cpu").parent, "a name makes no directory"


GB = 10**9


def test_a_model_that_does_not_fit_beside_a_run_is_reported() -> None:
    devices.refuse_crowding(2 * GB, 3 * GB, lambda: ["x"])
    devices.refuse_crowding(devices.model_bytes(16 * GB, "qlora"), 6 * GB, lambda: ["x"])
    devices.refuse_crowding(16 * GB, 3 * GB, list)
    with pytest.raises(UserError, match=r"Run the-run trains on the same device, where 3\.0 GB are"):
        devices.refuse_crowding(devices.model_bytes(16 * GB, "lora"), 3 * GB, lambda: ["the-run"])


@cases(("processes", "wsl", "expected"), [({11}, False, ["a"]), ({99}, False, []), (set(), True, ["a", "b"])])
def test_runs_on_a_card(monkeypatch: pytest.MonkeyPatch, processes: set[int], wsl: bool, expected: list[str]) -> None:
    def run(name: str, pid: int | None, device: str = "auto", *, over: bool = False, host: str = "here") -> Any:
        state = SimpleNamespace(is_over=over, pid=pid, host=host)
        config = SimpleNamespace(hardware=SimpleNamespace(device=device))
        return SimpleNamespace(id=name, state=lambda: state, config=lambda: config)

    runs = [run("a", 11), run("b", 12), run("c", 13, "cpu"), run("d", 11, over=True), run("e", 11, host="there")]
    monkeypatch.setattr(devices, "list_runs", lambda: runs)
    monkeypatch.setattr(devices, "hostname", lambda: "here")
    monkeypatch.setattr(devices, "is_wsl", lambda: wsl)
    monkeypatch.setattr(devices, "_processes", lambda _: processes)
    assert devices.runs_on_card("GPU-1") == expected
    # A run whose device is chosen by itself may be on either.
    assert devices.runs_on_cpu() == ["a", "b", "c"]
