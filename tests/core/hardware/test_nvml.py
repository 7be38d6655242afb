from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.core.hardware.conftest import Ask, Scene

DEVICES = """
import json
from core.hardware.nvml import Nvml
nvml = Nvml()
nvml.devices()
print(json.dumps([device.to_dict() for device in nvml.devices()]))
"""
FAILURE = """
import json
from core.hardware.nvml import Nvml, NvmlUnavailableError
try:
    Nvml()
except NvmlUnavailableError as error:
    print(json.dumps([error.reason, error.hint, error.absent]))
"""


def test_what_a_card_does_not_report_is_none_and_the_rest_stays(ask_driver: Ask) -> None:
    first, second = ask_driver(DEVICES)
    # It reports everything: 71 °C now, and 16 to the limit; 2 beyond it the hardware slows down, and 7 beyond it shuts
    # down. Half a gigabyte of the memory is the driver's.
    assert first == json.loads(Path(__file__).with_name("nvml_card.json").read_text())
    assert second["name"] == "GRID \ufffd[31mV100"
    # Cards before Ada have thresholds in degrees, and no margin of their own.
    names = ("c", "limit_c", "slowdown_c", "shutdown_c", "margin_c")
    assert [second[f"temperature_{name}"] for name in names] == [41.0, 93.0, 95.0, 98.0, 52.0]
    assert (second["memory_temperature_c"], second["memory_temperature_limit_c"]) == (None, 110.0)
    assert second["memory_total"] == 24_000_000_000
    unknown = {"utilization", "power_w", "power_limit_w", "power_limit_max_w", "fan", "clock", "memory_clock"}
    unknown |= {"pcie_generation", "pcie_width_max", "energy_j"}
    assert {second[key] for key in unknown} == {None}
    assert (second["throttle_reasons"], second["fans"]) == ([], [])


def test_an_old_driver_is_read_by_its_old_calls(ask_driver: Ask) -> None:
    first = ask_driver(DEVICES, "old")[0]
    assert (first["temperature_c"], first["memory_used"]) == (70.0, 6_000_000_000)
    assert (first["memory_free"], first["uuid"]) == (18_000_000_000, "")
    assert first["throttle_reasons"] == ["hardware thermal slowdown"]
    assert first["fans"] == [54.0]


@pytest.mark.parametrize(
    ("mode", "reason", "hint"), [("mismatch", "different versions", "Reboot"), ("unloaded", "not loaded", "modprobe")]
)
def test_a_broken_driver_is_explained(ask_driver: Ask, mode: str, reason: str, hint: str) -> None:
    found = ask_driver(FAILURE, mode)
    assert reason in found[0]
    assert hint in found[1]
    assert found[2] is False


def test_no_driver_is_distinguished_from_a_broken_one(ask_driver: Ask) -> None:
    program = FAILURE.replace(
        "Nvml()\n", "import ctypes, pynvml; pynvml.CDLL = lambda _: ctypes.CDLL('no.so'); Nvml()\n"
    )
    assert ask_driver(program)[2] is True


def test_heat_moves_the_temperature_and_not_its_limits(scene: Scene) -> None:
    first = scene.read()[0]
    assert (first["temperature_c"], first["temperature_limit_c"]) == (71.0, 87.0)
    # The margin is rounded for itself: the sum is a degree higher now, and the limit stays.
    second = scene.read(temperature=80, margin=8, memory_temperature=96, power=449900)[0]
    assert (second["temperature_c"], second["temperature_margin_c"]) == (80.0, 8.0)
    assert (second["temperature_limit_c"], second["temperature_slowdown_c"]) == (87.0, 89.0)
    assert (second["memory_temperature_c"], second["power_w"]) == (96.0, 449.9)
    beyond = scene.read(temperature=90, margin=-3)[0]
    assert (beyond["temperature_margin_c"], beyond["temperature_limit_c"]) == (-3.0, 87.0)
    assert scene.read(memory_temperature=0)[0]["memory_temperature_c"] is None


def test_processes_have_owners_and_traffic_is_read(scene: Scene) -> None:
    device = scene.read(process=f"{os.getpid()}:5000000000")[0]
    (process,) = device["processes"]
    assert (process["pid"], process["memory"]) == (os.getpid(), 5_000_000_000)
    assert process["name"]
    assert process["owner"]
    assert (device["pcie_tx"], device["pcie_rx"]) == (100_000.0, 2_500_000_000.0)
    gone = scene.read(process="4194300:7")[0]["processes"]
    assert gone == [{"pid": 4194300, "memory": 7, "name": "", "owner": ""}]


def test_a_driver_that_hangs_leaves_old_values_with_their_age(scene: Scene) -> None:
    assert scene.read()[0]["age_s"] is None
    held = scene.read_until(lambda devices: devices[0]["age_s"] is not None, hang=1, temperature=99)[0]
    assert held["temperature_c"] == 71.0
    older = scene.read_until(lambda devices: devices[0]["age_s"] > held["age_s"], hang=1)[0]
    assert older["temperature_c"] == 71.0
    # Meanwhile the machine is read.
    assert scene.has_host
    back = scene.read_until(lambda devices: devices[0]["age_s"] is None, temperature=75)[0]
    assert back["temperature_c"] == 75.0


def test_a_lost_card_says_so_and_comes_back_and_the_other_goes_on(scene: Scene) -> None:
    uuid = scene.read()[0]["uuid"]
    lost, other = scene.read(lost=1, xid="1:79")
    assert "fallen off the bus" in lost["problem"]
    assert (lost["uuid"], lost["name"]) == (uuid, "NVIDIA GeForce RTX 4090")
    assert (lost["temperature_c"], lost["memory_used"]) == (None, None)
    assert [item["code"] for item in lost["xid"]] == [79]
    assert other["problem"] == ""
    back = scene.read(temperature=50)[0]
    assert (back["problem"], back["temperature_c"]) == ("", 50.0)


def test_a_driver_loaded_again_is_read_again(scene: Scene) -> None:
    before = scene.read(xid="1:31")
    assert [item["code"] for item in before[0]["xid"]] == [31]
    away = scene.read_until(lambda devices: "not loaded" in devices[0]["problem"], driver=9)
    assert [device["name"] for device in away] == [device["name"] for device in before]
    assert away[0]["uuid"] == before[0]["uuid"]
    # Opened again, the card is a new one to the library, and earlier events are not forgotten.
    back = scene.read_until(lambda devices: not devices[0]["problem"], xid="2:13", temperature=60)
    again = scene.read(xid="2:13", temperature=60)
    assert back[0]["temperature_c"] == 60.0
    assert [item["code"] for item in again[0]["xid"]] == [31, 13]
    mismatched = scene.read_until(lambda devices: "different versions" in devices[0]["problem"], driver=18)
    assert mismatched[0]["kind"] == "cuda"


def test_an_error_is_read_once_and_the_newest_are_kept(scene: Scene) -> None:
    for number in range(1, 12):
        scene.read(xid=f"{number}:{100 + number}")
    device = scene.read(xid="11:111")[0]
    assert [item["code"] for item in device["xid"]] == [104, 105, 106, 107, 108, 109, 110, 111]


def test_a_run_on_the_cpu_does_not_wait_for_a_driver_that_hangs(ask_driver: Ask) -> None:
    program = (
        "import json\nfrom core.hardware.sampler import Sampler\nsampler = Sampler(1000.0)\nsampler.watch('cpu')\n"
        "print(json.dumps([device.kind for device in sampler.refresh(20.0)]))"
    )
    assert ask_driver(program, "hang") == ["cpu"]
