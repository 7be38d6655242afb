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
        # 71 now, 16 to the maximum, and 2 beyond it to the slowdown.
        "temperature_limit_c": 89.0,
        "memory_used": 5_500_000_000,
        "memory_total": 24_000_000_000,
        "utilization": 98.0,
        "power_w": 312.4,
        "power_limit_w": 450.0,
        "fan": 54.0,
        "clock": 2520.0,
        "throttle_reasons": ["power cap", "thermal slowdown"],
        "problem": "",
        # Half a gigabyte of the rest is the driver's.
        "memory_free": 18_000_000_000,
        "uuid": "GPU-00000010-1111-2222-3333-444455556666",
        "memory_temperature_c": None,
        "power_limit_min_w": None,
        "power_limit_max_w": None,
    }


def test_what_a_card_does_not_report_is_none_and_the_rest_stays(ask_driver: Ask) -> None:
    second = ask_driver(DEVICES)[1]
    assert second["name"] == "GRID \ufffd[31mV100"
    assert (second["temperature_c"], second["temperature_limit_c"]) == (41.0, 95.0)
    assert second["memory_total"] == 24_000_000_000
    assert [second[key] for key in ("utilization", "power_w", "power_limit_w", "fan", "clock")] == [None] * 5
    assert second["throttle_reasons"] == []


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


def test_versions_processes_and_energy(ask_driver: Ask) -> None:
    program = (
        "import json, os\nfrom core.hardware.nvml import Nvml\nnvml = Nvml()\n"
        "print(json.dumps([nvml.driver_version, nvml.cuda_version, nvml.compute_capability(0), nvml.energy_joules(0),"
        " nvml.energy_joules(1), [(p.pid == os.getpid(), p.memory) for p in nvml.processes(0)], nvml.processes(1)]))\n"
        "nvml.close()"
    )
    assert ask_driver(program) == [
        "580.95.05",
        "13.0",
        [8, 9],
        1000.0,
        None,
        [[False, 4_500_000_000], [True, 1_000_000_000]],
        [],
    ]
