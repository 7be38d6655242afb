"""The CPU and its memory: the training device where there is no GPU."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import psutil

from core import paths
from core.atomic import write_atomic
from core.hardware.snapshot import Device
from core.small_files import read_json
from core.text import one_line

#: The directory of the counters.
POWERCAP = Path("/sys/class/powercap")
#: Seconds between two readings below which power is not computed: the counter is renewed every millisecond.
_SHORTEST_ENERGY_SPAN = 0.05


class Rapl:
    """Energy of the processor packages by RAPL; None if there are no counters, or they may not be read.

    Args:
        root: The directory of the counters.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages = [
            path for path in sorted(root.glob("intel-rapl:*")) if read_text(path / "name").startswith("package")
        ]
        self._ranges = {path: read_number(path / "max_energy_range_uj") for path in self._packages}
        self._before: dict[Path, int] = {}
        self._moment = 0.0
        self.energy_j: float | None = None
        """Joules since the first reading; None if the counters cannot be read."""
        self.power_w: float | None = None
        """Mean power since the reading before; None at the first."""

    def read(self, moment: float | None = None) -> None:
        """Read the counters.

        Args:
            moment: Seconds on a clock that is not set; None: now.
        """
        now = time.monotonic() if moment is None else moment
        counts = {path: count for path in self._packages if (count := read_number(path / "energy_uj")) is not None}
        if not counts or (self._before and now - self._moment < _SHORTEST_ENERGY_SPAN):
            self.energy_j = self.energy_j if counts else None
            self.power_w = self.power_w if counts else None
            return
        if self._before:
            used = sum(self._used(path, count) for path, count in counts.items()) / 1e6
            self.energy_j = (self.energy_j or 0.0) + used
            self.power_w = round(used / (now - self._moment), 1)
        else:
            self.energy_j = 0.0
        self._before, self._moment = counts, now

    def _used(self, path: Path, count: int) -> int:
        before = self._before.get(path, count)
        # The counter starts again at its end, every few minutes under load.
        return count - before if count >= before else count - before + (self._ranges[path] or before - count)


def read_text(path: Path) -> str:
    """Content of a small file of the system, without blanks at its ends; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    """The whole number in a file of the system; None if there is none."""
    text = read_text(path)
    return int(text) if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else None


#: Sensor chips that measure the processor itself, best first.
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
#: Labels of the sensor for the whole processor.
_WHOLE = ("Package id 0", "Tctl", "Tdie")
_LIMIT_RANGE_C = (50.0, 125.0)
#: Processor seconds (over all cores) below which a share of busy ticks is meaningless.
_SHORTEST_SPAN = 0.2
_CGROUP = Path("/sys/fs/cgroup")


class Cpu:
    """A reader of the CPU; utilization and power are those since the last reading, so the first one has none.

    Args:
        rapl: The energy counters read with it; None: this machine's.
    """

    def __init__(self, rapl: Rapl | None = None) -> None:
        self._name = cpu_name()
        self._rapl = rapl if rapl is not None else Rapl()
        self._before: tuple[float, float] | None = None
        self._percent: float | None = None

    def device(self) -> Device:
        """The current state of the CPU; its memory is that of the machine, or the limit of its container."""
        used, total = memory()
        temperature, limit = _temperature()
        self._rapl.read()
        return Device(
            index=0,
            kind="cpu",
            name=self._name,
            temperature_c=temperature,
            temperature_limit_c=limit,
            temperature_margin_c=None if temperature is None or limit is None else limit - temperature,
            power_w=self._rapl.power_w,
            energy_j=self._rapl.energy_j,
            memory_used=used,
            memory_total=total,
            utilization=self._utilization(),
            clock=_clock(),
        )

    def _utilization(self) -> float | None:
        times = psutil.cpu_times()
        # Guest time is included in user time already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        if self._before is None:
            self._before = (busy, total)
        elif total - self._before[1] >= _SHORTEST_SPAN:
            share = (busy - self._before[0]) / (total - self._before[1])
            self._before, self._percent = (busy, total), min(max(100.0 * share, 0.0), 100.0)
        return self._percent


def cpu_name() -> str:
    """The model name of the processor, or its architecture where the name is unknown."""
    found: dict[str, str] = {}
    for line in _information().splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            found.setdefault(key.strip().lower(), value.strip())
    name = found.get("model name") or found.get("hardware") or found.get("model") or platform.machine()
    return one_line(" ".join(name.split()), 80)


def memory(cgroup: Path = _CGROUP) -> tuple[int, int]:
    """Used and total memory in bytes; a container's limit counts if it is lower."""
    machine = psutil.virtual_memory()
    used, total = int(machine.total - machine.available), int(machine.total)
    limit, current = read_number(cgroup / "memory.max"), read_number(cgroup / "memory.current")
    if limit is not None and current is not None and limit < total:
        # Cached file pages are reclaimed before anything is killed.
        return max(current - _inactive_file(cgroup), 0), limit
    return used, total


def free_memory() -> int:
    """Free memory in bytes, as :func:`memory` counts it."""
    used, total = memory()
    return max(total - used, 0)


def has_bf16() -> bool:
    """True if the processor computes in bf16 natively: AVX512-BF16 or AMX."""
    flags = _information()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def has_avx2() -> bool:
    """True if the processor has AVX2, as programs built for recent processors need."""
    return "avx2" in _information().split()


def _information() -> str:
    return read_text(Path("/proc/cpuinfo"))


def process_rss(pid: int) -> int | None:
    """Resident memory of a process in bytes; None when it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _inactive_file(cgroup: Path) -> int:
    lines = read_text(cgroup / "memory.stat").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def _temperature() -> tuple[float | None, float | None]:
    """Temperature and limit of the processor in °C; None if the machine has no such sensor."""
    try:
        chips: dict[str, list[Any]] = psutil.sensors_temperatures()
    except (OSError, AttributeError, ValueError):
        return None, None
    for chip in _CHIPS:
        readings = [item for item in chips.get(chip, []) if item.current and item.current > 0]
        if readings:
            whole = [item for item in readings if item.label in _WHOLE]
            hottest = max(whole or readings, key=lambda item: item.current)
            low, high = _LIMIT_RANGE_C
            limit = next((value for value in (hottest.high, hottest.critical) if value and low <= value <= high), None)
            return float(hottest.current), limit
    return None, None


def _clock() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, ValueError):
        return None
    return float(frequency.current) if frequency is not None and frequency.current else None


#: Variables that limit the instructions of torch's libraries.
_LIMITING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
_LIMIT = 64 << 10
#: Least speed of bf16 as a multiple of fp32 to be preferred, with the flags and without them: a noisy measurement does
#: not contradict the flags, and an emulation is far from both.
_NATIVE_RATIO, _OTHER_RATIO = 0.8, 1.5


def prefers_bf16() -> bool:
    """True if this CPU computes faster in bf16 than in fp32, by measurement, else by the processor's flags."""
    measured = _measurements().get(_key())
    return measured if isinstance(measured, bool) else has_bf16()


def is_bf16_measured() -> bool:
    """True if it was measured on this CPU."""
    return isinstance(_measurements().get(_key()), bool)


def keep_bf16_measurement(ratio: float) -> bool:
    """Keep a measurement in the home.

    Args:
        ratio: Speed of a matrix product in bf16 as a multiple of the same in fp32.

    Returns:
        Whether bf16 is to be preferred.
    """
    faster = ratio >= (_NATIVE_RATIO if has_bf16() else _OTHER_RATIO)
    path = _path()
    with contextlib.suppress(OSError):  # a full disk or a home that cannot be written: measured again next time
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, json.dumps({**_measurements(), _key(): faster}, indent=1) + "\n", durable=False)
    return faster


def _key() -> str:
    limits = [f"{name}={os.environ[name]}" for name in _LIMITING if os.environ.get(name)]
    return " ".join([cpu_name(), *limits])


def _path() -> Path:
    return paths.home() / "calibration" / "bf16.json"


def _measurements() -> dict[str, object]:
    try:
        found = read_json(_path(), _LIMIT)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
