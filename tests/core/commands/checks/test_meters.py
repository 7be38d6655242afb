from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.commands.checks.meters import check_amd, check_card_meters, check_cpu_meters, check_platform
from core.hardware import obstacle
from core.hardware.drivers import Build
from core.hardware.obstacle import APPLE
from core.hardware.proof import Proof, settle
from core.hardware.snapshot import Device
from tests.core.hardware.amd_tree import CARD, make_card, make_processes

NVIDIA = Device(
    index=1, kind="cuda", name="RTX 4090", uuid="GPU-1", temperature_c=71.0, temperature_limit_c=87.0, memory_used=1,
    utilization=1.0, power_w=300.0, power_limit_w=280.0, power_limit_min_w=150.0, power_limit_max_w=480.0, clock=1.0,
    fan=0.0, pcie_generation=4, energy_j=1.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _home(private_home: Path) -> None:
    """Records of limits are in the home."""


def test_what_a_card_does_not_report_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.commands.checks.meters.may_set_power", lambda: False)
    meters, power = check_card_meters(NVIDIA)
    assert meters.name == "gpu 1 meters"
    assert meters.what.startswith("all but where it shuts down, memory temperature can be read")
    assert power.what == "root alone may set the power limit, from 150 to 480 W"
    assert power.hint == "For less heat: sudo nvidia-smi -i 1 -pl 360"
    monkeypatch.setattr("core.commands.checks.meters.may_set_power", lambda: True)
    power = check_card_meters(NVIDIA)[1]
    assert (power.what, power.hint) == ("this user may set the power limit, from 150 to 480 W", "")
    assert check_card_meters(replace(NVIDIA, problem="gone")) == []


def test_a_limit_that_a_run_left_is_reported(private_home: Path) -> None:
    (private_home / "power").mkdir(parents=True)
    (private_home / "power/GPU-1.json").write_text(json.dumps({"uuid": "GPU-1", "watts": 450.0}))
    finding = check_card_meters(NVIDIA)[-1]
    assert finding.status == "warn"
    assert finding.what == "the power limit is 280 W, and was 450 W before a run changed it"
    assert finding.hint.endswith("sudo nvidia-smi -i 1 -pl 450")
    # It was put back by other means.
    assert [item.status for item in check_card_meters(replace(NVIDIA, power_limit_w=450.0))] == ["ok", "ok"]


def test_an_amd_cards_self_test_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_card(tmp_path, {**CARD, "product_name": "Radeon RX 7900 XTX"})
    make_processes(tmp_path, {})
    meters = (
        "AMD Radeon RX 7900 XTX, 83 °C (slows down at 110), 301 W, 19.3 GB of 25.8 GB in use, not reported: "
        "energy counter"
    )
    (finding,) = check_amd(Build("2.13.0", "13.0"), tmp_path)
    assert (finding.status, finding.what) == ("warn", f"{meters}; torch is not built for it (ROCm)")
    rocm = Build("2.13.0+rocm7.2", None, "7.2")
    monkeypatch.setattr(obstacle, "is_rocm", lambda: True)
    (finding,) = check_amd(rocm, tmp_path)
    assert finding.status == "warn"
    assert finding.what.startswith(f"{meters}. The AMD card (GPU 0, gfx1100) has not passed the self-test")
    assert "localtune-tui selftest" in finding.hint
    settle(Proof.here("gfx1100", rocm.version, obstacle.look(root=tmp_path).driver), passed=True)
    (finding,) = check_amd(rocm, tmp_path)
    assert (finding.status, finding.hint) == ("ok", "")
    assert check_amd(rocm, tmp_path / "nothing") == []


def test_the_processors_counters(tmp_path: Path) -> None:
    cpu = Device(index=0, kind="cpu", name="CPU", temperature_c=50.0)
    assert check_cpu_meters(cpu, tmp_path).what == (
        "the temperature of the CPU can be read; no counter (RAPL) tells its energy"
    )
    counter = tmp_path / "intel-rapl:0/energy_uj"
    counter.parent.mkdir()
    counter.write_text("5\n")
    finding = check_cpu_meters(replace(cpu, temperature_c=None), tmp_path)
    assert finding.what == ("no sensor tells the temperature of the CPU; its energy (RAPL) can be read by root alone")
    assert "CVE-2020-8694" in finding.hint
    assert check_cpu_meters(replace(cpu, energy_j=0.0), tmp_path).what.endswith("; its power can be read")


def test_a_mac_gets_the_reason() -> None:
    assert [finding.what for finding in check_platform("darwin")] == [APPLE]
    assert check_platform("linux") == []
