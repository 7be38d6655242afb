from __future__ import annotations

from pathlib import Path

import pytest

from core.hardware.cpu import Cpu, Rapl
from core.hardware.sampler import HostReader


def package(root: Path, number: int, energy: int, name: str = "package-0", most: int = 1_000_000_000) -> None:
    directory = root / f"intel-rapl:{number}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "name").write_text(f"{name}\n")
    (directory / "energy_uj").write_text(f"{energy}\n")
    (directory / "max_energy_range_uj").write_text(f"{most}\n")


def test_power_is_the_energy_between_two_readings(tmp_path: Path) -> None:
    package(tmp_path, 0, 5_000_000)
    package(tmp_path, 1, 1_000_000, "package-1")
    # A part of the first package, and the whole machine: neither is counted twice.
    package(tmp_path, 2, 9_000_000, "psys")
    rapl = Rapl(tmp_path)
    rapl.read(100.0)
    assert (rapl.energy_j, rapl.power_w) == (0.0, None)
    package(tmp_path, 0, 125_000_000)
    package(tmp_path, 1, 11_000_000, "package-1")
    rapl.read(102.0)
    assert (rapl.energy_j, rapl.power_w) == (130.0, 65.0)
    # Too soon to mean anything.
    rapl.read(102.01)
    assert rapl.power_w == 65.0
    # The counter has begun again.
    package(tmp_path, 0, 25_000_000)
    rapl.read(103.0)
    assert rapl.energy_j == pytest.approx(130 + 900)


def test_counters_that_may_not_be_read_report_nothing(tmp_path: Path) -> None:
    package(tmp_path, 0, 5)
    rapl = Rapl(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").unlink()
    rapl.read(1.0)
    assert (rapl.energy_j, rapl.power_w) == (None, None)
    nothing = Rapl(tmp_path / "nothing")
    nothing.read(1.0)
    assert nothing.power_w is None


def test_the_cpu_and_the_machine_report_it(tmp_path: Path, private_home: Path) -> None:
    package(tmp_path, 0, 5)
    rapl = Rapl(tmp_path)
    assert Cpu(rapl).device().energy_j == 0.0
    rapl.power_w = 42.0
    (tmp_path / "intel-rapl:0/energy_uj").write_text("6\n")
    reader = HostReader(rapl)
    cpu, host = reader.read()
    assert cpu.energy_j is not None
    assert host.cpu_power_w == cpu.power_w
    assert (host.ram_used, host.ram_total) == (cpu.memory_used, cpu.memory_total)
    assert host.load is not None
    assert host.load >= 0
    assert host.disk_free
    assert host.swap_total is not None
    # The home is not there yet: its disk is that of what is.
    assert not (private_home / "nothing").exists()
    assert host.cores == []
    assert all(0 <= share <= 100 for share in reader.read()[1].cores)
