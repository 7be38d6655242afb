from __future__ import annotations

import os
import subprocess
from collections import namedtuple
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from core.hardware import cpu
from core.hardware.cpu import Cpu, Rapl, cpu_name, memory, process_rss
from core.hardware.sampler import HostReader
from tests.cases import cases
from tests.core.runs.helpers import there

Sensor = namedtuple("Sensor", "label current high critical")
Times = namedtuple("Times", "user nice system idle iowait guest guest_nice")


def test_the_machine_reports_its_memory_and_name() -> None:
    device = Cpu().device()
    assert (device.index, device.kind, device.name, device.utilization) == (0, "cpu", cpu_name(), None)
    assert device.name
    assert 0 < (device.memory_used or 0) < (device.memory_total or 0) <= psutil.virtual_memory().total


def test_utilization_is_the_share_of_busy_time_between_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter(
        [Times(100, 0, 10, 200, 20, 50, 0), Times(100.05, 0, 10, 200.05, 20, 50, 0), Times(103, 0, 11, 205, 21, 52, 0)]
    )
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(readings))
    cpu = Cpu()
    # The second reading comes too soon to mean anything. Guest time counts once, waiting for the disk is idle.
    assert [cpu.device().utilization for _ in range(3)] == [None, None, pytest.approx(100 * 4 / 10)]


@cases(
    ("chips", "expected"),
    [
        ({}, (None, None)),
        (
            {"coretemp": [Sensor("Core 0", 60.0, 100.0, 105.0), Sensor("Package id 0", 65.0, 100.0, 105.0)]},
            (65.0, 100.0),
        ),
        ({"nvme": [Sensor("", 90.0, 99.0, 99.0)], "k10temp": [Sensor("Tctl", 71.5, None, None)]}, (71.5, None)),
        ({"coretemp": [Sensor("Core 0", 0.0, None, None)], "acpitz": [Sensor("", 40.0, 20.0, 110.0)]}, (40.0, 110.0)),
    ],
)
def test_the_temperature_is_that_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, chips: dict[str, list[Sensor]], expected: tuple[float | None, float | None]
) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: chips)
    device = Cpu().device()
    assert (device.temperature_c, device.temperature_limit_c) == expected


def test_sensors_that_fail_are_sensors_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sensors_temperatures", "cpu_freq"):
        monkeypatch.setattr(psutil, name, Mock(side_effect=OSError(5, "Input/output error")))
    device = Cpu().device()
    assert (device.temperature_c, device.clock) == (None, None)


def test_a_containers_limit_counts_where_it_is_lower(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total
    assert memory(tmp_path)[1] == machine
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000000\n")
    assert memory(tmp_path)[1] == machine
    (tmp_path / "memory.max").write_text("8000000\n")
    assert memory(tmp_path) == (5_000_000, 8_000_000)
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 2000000\n")
    assert memory(tmp_path) == (3_000_000, 8_000_000)


def test_instructions_are_read_from_the_processors_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "Path", lambda _: info)
    assert not cpu.has_bf16()
    for flags, bf16, avx2 in (("avx512_bf16", True, False), ("avx2_not amx_bf16", True, False), ("avx2", False, True)):
        info.write_text(f"flags : fpu {flags} sse\n")
        assert (cpu.has_bf16(), cpu.has_avx2()) == (bf16, avx2)


def test_resident_memory_of_a_process() -> None:
    rss = there(process_rss(os.getpid()))
    assert rss > 1_000_000
    with subprocess.Popen(["true"]) as child:
        child.wait()
    assert process_rss(child.pid) is None


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
    assert (host.cpu_power_w, host.ram_used, host.ram_total) == (cpu.power_w, cpu.memory_used, cpu.memory_total)
    assert None not in (host.load, host.swap_total)
    assert host.disk_free
    assert host.cores == []
    assert all(0 <= share <= 100 for share in reader.read()[1].cores)


@pytest.fixture
def here(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_name", lambda: "A CPU")
    for name in cpu._LIMITING:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("flag", [True, False])
def test_flags_tell_until_a_clear_measurement_decides(flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: flag)
    assert cpu.prefers_bf16() is flag
    assert not cpu.is_bf16_measured()
    for ratio, faster in ((2.1, True), (0.2, False), (0.9, True) if flag else (1.2, False)):
        assert cpu.keep_bf16_measurement(ratio) is faster
        assert cpu.is_bf16_measured()
        assert cpu.prefers_bf16() is faster


@pytest.mark.usefixtures("here")
def test_it_is_kept_for_one_cpu_with_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    cpu.keep_bf16_measurement(2.0)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert not cpu.is_bf16_measured()
    cpu.keep_bf16_measurement(0.2)
    assert not cpu.prefers_bf16()
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    assert cpu.prefers_bf16()
    for content in ("", "[1]", '{"A CPU": "yes"}', "{" * 10_000):
        cpu._path().write_text(content, encoding="utf-8")
        assert cpu.prefers_bf16(), "a torn or foreign file counts as none"
        assert not cpu.keep_bf16_measurement(0.1)
        assert not cpu.prefers_bf16()


@pytest.mark.usefixtures("here")
def test_a_home_that_cannot_be_written_is_no_obstacle(private_home: Path) -> None:
    private_home.mkdir(parents=True, exist_ok=True)
    (private_home / "calibration").write_text("in the way")
    assert cpu.keep_bf16_measurement(2.0)
