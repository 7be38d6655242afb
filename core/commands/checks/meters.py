"""Checks of the meters: temperature, power and load as far as this machine reports them."""

from __future__ import annotations

import sys
from pathlib import Path

from core.commands.checks import Finding
from core.hardware.amd import AmdSource
from core.hardware.cpu import POWERCAP, Cpu, Rapl
from core.hardware.drivers import Build
from core.hardware.obstacle import APPLE, APPLE_REMEDY, find_obstacle, look
from core.hardware.power import changed_limits, may_set_power, set_command
from core.hardware.snapshot import Device
from core.units import format_bytes

#: Meters of a card in words, each with its fields of :class:`~core.hardware.snapshot.Device`.
_METERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("temperature", ("temperature_c",)),
    ("where it slows down", ("temperature_limit_c",)),
    ("where it shuts down", ("temperature_shutdown_c",)),
    ("memory temperature", ("memory_temperature_c",)),
    ("memory in use", ("memory_used",)),
    ("utilization", ("utilization",)),
    ("power", ("power_w",)),
    ("power limit", ("power_limit_w",)),
    ("clocks", ("clock", "memory_clock")),
    ("fans", ("fan",)),
    ("PCIe link", ("pcie_generation", "pcie_width")),
    ("energy counter", ("energy_j",)),
)
_COUNTERS = "/sys/class/powercap/intel-rapl:*/energy_uj"


def check_platform(platform: str = sys.platform) -> list[Finding]:
    """Check that the system is supported; no finding on Linux."""
    if platform == "darwin":
        return [Finding("apple", "fail", APPLE, APPLE_REMEDY)]
    return []


def check_card_meters(device: Device) -> list[Finding]:
    """The findings about the meters of an NVIDIA card, and about its power limit."""
    if device.problem:
        return []
    name = f"gpu {device.index}"
    missing = missing_meters(device)
    said = f"all but {', '.join(missing)}" if missing else "all"
    what = f"{said} can be read; errors of the card (Xid) are told while a run is on"
    found = [Finding(f"{name} meters", "ok", what)]
    low, high = device.power_limit_min_w, device.power_limit_max_w
    if low is not None and high is not None:
        who = "this user may set" if may_set_power() else "root alone may set"
        what = f"{who} the power limit, from {low:.0f} to {high:.0f} W"
        hint = "" if may_set_power() else f"For less heat: {set_command(device.index, max(low, round(0.75 * high)))}"
        found.append(Finding(f"{name} power", "ok", what, hint))
    before = changed_limits().get(device.uuid)
    if before is not None and device.power_limit_w is not None and abs(before - device.power_limit_w) >= 1:
        what = f"the power limit is {device.power_limit_w:.0f} W, and was {before:.0f} W before a run changed it"
        hint = f"If no run is on, put it back: {set_command(device.index, before)}"
        found.append(Finding(f"{name} limit", "warn", what, hint))
    return found


def missing_meters(device: Device) -> list[str]:
    """The meters that a device does not report, in words."""
    return [words for words, fields in _METERS if all(getattr(device, field) is None for field in fields)]


def check_amd(build: Build | None, root: Path = Path("/")) -> list[Finding]:
    """The findings about AMD's cards; none where there are none.

    Args:
        build: The installed torch; None where it is unknown.
        root: The root of the file system.
    """
    found = []
    for device in AmdSource(root).read():
        parts = [device.name]
        if device.temperature_c is not None:
            limit = f" (slows down at {device.temperature_limit_c:.0f})" if device.temperature_limit_c else ""
            parts.append(f"{device.temperature_c:.0f} °C{limit}")
        if device.power_w is not None:
            parts.append(f"{device.power_w:.0f} W")
        if device.memory_total:
            parts.append(f"{format_bytes(device.memory_used)} of {format_bytes(device.memory_total)} in use")
        if missing := missing_meters(device):
            parts.append(f"not reported: {', '.join(missing)}")
        what, name = ", ".join(parts), f"amd {device.index}"
        if build is None or not build.hip:
            hint = "For training on it, install torch for ROCm: pytorch.org/get-started/locally names the command."
            found.append(Finding(name, "warn", f"{what}; torch is not built for it (ROCm)", hint))
        elif (obstacle := find_obstacle(look(root=root), build, gpu=str(device.index))) is not None:
            found.append(Finding(name, "warn", f"{what}. {obstacle.message}", obstacle.hint))
        else:
            found.append(Finding(name, "ok", f"{what}; its self-test has passed with this torch and driver"))
    return found


def check_cpu_meters(cpu: Device | None = None, root: Path = POWERCAP) -> Finding:
    """The finding about the meters of the processor.

    Args:
        cpu: The CPU as it was read; None: read now.
        root: The directory of the counters of energy.
    """
    device = cpu if cpu is not None else Cpu(Rapl(root)).device()
    can_tell = device.temperature_c is not None
    heat = "the temperature of the CPU can be read" if can_tell else "no sensor tells the temperature of the CPU"
    if device.energy_j is not None:
        return Finding("cpu meters", "ok", f"{heat}; its power can be read")
    if not any(root.glob("intel-rapl:*/energy_uj")):
        return Finding("cpu meters", "ok", f"{heat}; no counter (RAPL) tells its energy")
    what = f"{heat}; its energy (RAPL) can be read by root alone"
    hint = (
        f"Until the next boot: sudo chmod a+r {_COUNTERS}. From then on every program here can learn from it what "
        "others compute (CVE-2020-8694)."
    )
    return Finding("cpu meters", "ok", what, hint)
