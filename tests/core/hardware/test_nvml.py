from __future__ import annotations

from typing import Any

import pytest

from tests.core.hardware.conftest import Ask

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


def test_a_card_that_reports_everything(ask_driver: Ask) -> None:
    first: dict[str, Any] = ask_driver(DEVICES)[0]
    assert first == {
        "index": 0,
        "kind": "cuda",
        "name": "NVIDIA GeForce RTX 4090",
        "temperature_c": 71.0,
        # 71 now, 16 to the limit; 2 beyond it the hardware slows down, and 7 beyond it shuts down.
        "temperature_limit_c": 87.0,
        "temperature_slowdown_c": 89.0,
        "temperature_shutdown_c": 94.0,
        "temperature_margin_c": 16.0,
        "memory_temperature_c": 84.0,
        "memory_temperature_limit_c": None,
        "memory_used": 5_500_000_000,
        "memory_total": 24_000_000_000,
        "utilization": 98.0,
        "power_w": 312.4,
        "power_limit_w": 450.0,
        "power_limit_min_w": 150.0,
        "power_limit_max_w": 480.0,
        "fan": 54.0,
        "fans": [54.0, 53.0],
        "clock": 2520.0,
        "memory_clock": 10501.0,
        "pcie_generation": 1,
        "pcie_width": 8,
        "pcie_generation_max": 4,
        "pcie_width_max": 16,
        "pcie_tx": None,
        "pcie_rx": None,
        "energy_j": 4600.0,
        "processes": [],
        "xid": [],
        "age_s": None,
        "throttle_reasons": ["power cap", "thermal slowdown"],
        "problem": "",
        # Half a gigabyte of the rest is the driver's.
        "memory_free": 18_000_000_000,
        "uuid": "GPU-00000010-1111-2222-3333-444455556666",
    }


def test_what_a_card_does_not_report_is_none_and_the_rest_stays(ask_driver: Ask) -> None:
    second = ask_driver(DEVICES)[1]
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


def test_a_lost_card_says_so_and_the_other_goes_on(ask_driver: Ask) -> None:
    first, second = ask_driver(DEVICES, "lost")
    assert first["temperature_c"] == 71.0
    assert "fallen off the bus" in second["problem"]
    assert second["memory_used"] is None


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


def test_no_driver_is_told_from_a_broken_one(ask_driver: Ask) -> None:
    program = FAILURE.replace(
        "Nvml()\n", "import ctypes, pynvml; pynvml.CDLL = lambda _: ctypes.CDLL('no.so'); Nvml()\n"
    )
    assert ask_driver(program)[2] is True


def test_versions_and_processes(ask_driver: Ask) -> None:
    program = (
        "import json, os\nfrom core.hardware.nvml import Nvml\nnvml = Nvml()\n"
        "print(json.dumps([nvml.driver_version, nvml.cuda_version, nvml.compute_capability(0),"
        " [(p.pid == os.getpid(), p.memory) for p in nvml.processes(0)], nvml.processes(1)]))\n"
        "nvml.close()"
    )
    assert ask_driver(program) == [
        "580.95.05",
        "13.0",
        [8, 9],
        [[False, 4_500_000_000], [True, 1_000_000_000]],
        [],
    ]
