from __future__ import annotations

import os
import subprocess
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from core.hardware import cpu as module
from core.hardware.cpu import Cpu, cpu_name, memory, process_rss
from tests.cases import cases

Sensor = namedtuple("Sensor", "label current high critical")
Times = namedtuple("Times", "user nice system idle iowait guest guest_nice")


def test_the_machine_reports_its_memory_and_name() -> None:
    device = Cpu().device()
    assert (device.index, device.kind, device.name) == (0, "cpu", cpu_name())
    assert device.name
    assert device.memory_used
    assert device.memory_total
    assert device.memory_used < device.memory_total <= psutil.virtual_memory().total
    assert device.utilization is None


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
    def fail() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(psutil, "sensors_temperatures", fail)
    monkeypatch.setattr(psutil, "cpu_freq", fail)
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


@cases(("flags", "has"), [("fpu avx512f avx512_bf16", True), ("fpu amx_bf16", True), ("fpu avx2", False)])
def test_bf16_is_read_from_the_processors_flags(
    flags: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(module, "Path", lambda _: tmp_path / "cpuinfo")
    assert module.has_bf16() is has
    (tmp_path / "cpuinfo").unlink()
    assert module.has_bf16() is False


def test_resident_memory_of_a_process() -> None:
    rss = process_rss(os.getpid())
    assert rss is not None
    assert rss > 1_000_000
    with subprocess.Popen(["true"]) as child:
        child.wait()
    assert process_rss(child.pid) is None
    assert module.process_rss(2**22 + 1) is None


def test_flags_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_flags", lambda: "flags : fpu avx2 sse\n")
    assert module.has_avx2()
    assert not module.has_bf16()
    monkeypatch.setattr(module, "_flags", lambda: "flags : avx avx2_not amx_bf16")
    assert not module.has_avx2()
    assert module.has_bf16()
