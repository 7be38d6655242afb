"""Checks of the GPUs, their driver, and the processes that use their memory."""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path

from core.commands.checks import Finding
from core.commands.checks.meters import check_card_meters
from core.hardware.card import BF16_CAPABILITY, choose
from core.hardware.drivers import (
    Build,
    allocator_defaults,
    describe_allocator,
    describe_table,
    driver_sentence,
    driver_suffices,
    fixed_segments_reason,
    install_command,
    installed_build,
    is_wsl,
)
from core.hardware.nvml import Nvml, NvmlUnavailableError, age_of, named
from core.hardware.obstacle import parse_cuda
from core.hardware.snapshot import Device, GpuProcess
from core.units import format_bytes, format_duration

#: Seconds allowed for all answers of the driver.
DRIVER_SECONDS = 15.0
#: Share of a card's memory below which the free memory is worth a warning.
_ENOUGH_FREE = 0.85
#: The oldest driver for each version of CUDA, on one line.
TABLE = describe_table()


@dataclass(frozen=True)
class DriverReport:
    """The driver and the cards; ``cuda`` is the newest CUDA version that the driver supports, ``(13, 0)``."""

    findings: list[Finding]
    cards: int = 0
    cuda: tuple[int, int] | None = None
    version: str = ""
    """The driver's version; empty where unknown."""
    capability: tuple[int, int] | None = None
    """The compute capability of the card that a run takes."""


def check_gpu(timeout: float = DRIVER_SECONDS) -> DriverReport:
    """Check the driver and the cards; a driver that hangs is a finding too."""
    answers: queue.Queue[DriverReport] = queue.Queue()

    def ask() -> None:
        answers.put(_ask_driver())

    # A daemon thread: a call into a wedged driver never returns and cannot be interrupted.
    threading.Thread(target=ask, name="driver", daemon=True).start()
    try:
        return answers.get(timeout=timeout)
    except queue.Empty:
        what = f"The NVIDIA driver has not answered for {timeout:g} s."
        return DriverReport([Finding("gpu", "fail", what, "Look for 'Xid' in 'sudo dmesg', and reboot.")])


def _ask_driver() -> DriverReport:
    try:
        nvml = Nvml()
    except NvmlUnavailableError as error:
        card = _pci_card()
        if error.absent and not card:
            return DriverReport([Finding("gpu", "warn", "There is no NVIDIA driver here.", error.hint)])
        return DriverReport([Finding("gpu", "fail", error.reason, error.hint)])
    try:
        devices = nvml.devices()
        versions = f"driver {nvml.driver_version or 'unknown'}, CUDA up to {nvml.cuda_version or 'unknown'}"
        if not devices:
            sees_none = Finding("gpu", "fail", f"The NVIDIA driver sees no GPU ({versions}).", "Try 'nvidia-smi'.")
            return DriverReport([sees_none])
        found = [Finding("driver", "ok", versions)]
        wsl = is_wsl()
        for device in devices:
            capability, processes = nvml.compute_capability(device.index), nvml.processes(device.index)
            found += [*describe_device(device, capability, processes, wsl=wsl), *check_card_meters(device)]
        usable = sum(not device.problem for device in devices)
        first = choose(nvml.identities(), os.environ, None)
        if first is not None and len(devices) > 1:
            what = f"runs take GPU {first.index}, {devices[first.index].name}"
            found.append(Finding("first gpu", "ok", what, "hardware.gpu names another one."))
        fixed = fixed_segments_reason(installed_build(), wsl=wsl)
        variables = {**allocator_defaults(os.environ, fixed), **os.environ}
        found.append(Finding("allocator", "ok", describe_allocator(variables, fixed)))
        capability = nvml.compute_capability(first.index) if first is not None else None
        return DriverReport(found, usable, parse_cuda(nvml.cuda_version), nvml.driver_version or "", capability)
    finally:
        nvml.close()


def check_cuda(driver: DriverReport, build: Build | None) -> list[Finding]:
    """Check the driver against the CUDA that the installed torch was built for, by the table of drivers; no finding
    without a card.

    Args:
        driver: The driver's report.
        build: The installed torch; None where it is unknown.
    """
    if not driver.cards or driver.cuda is None or build is None or build.hip:
        return []
    command = install_command(driver.cuda, driver.capability)
    if build.cuda is None:
        what = f"torch {build.version} is built for the CPU only; driver {driver.version} needs a build with CUDA"
        return [Finding("cuda", "fail", what, f"Run: {command}" if command else f"Update the driver: {TABLE}.")]
    what = f"{driver_sentence(driver.version, driver.cuda, build)} ({TABLE})"
    if driver_suffices(build, driver.cuda):
        return [Finding("cuda", "ok", what)]
    instead = f", or run: {command}" if command else "; no torch that this program uses was built for this one."
    return [Finding("cuda", "fail", what, f"Update the NVIDIA driver{instead}")]


def describe_device(
    device: Device, capability: tuple[int, int] | None, processes: list[GpuProcess], *, wsl: bool = False
) -> list[Finding]:
    """The findings about one card.

    Args:
        device: The card.
        capability: Its compute capability.
        processes: The processes that use its memory.
        wsl: Whether this is Linux under Windows, which lists none of Windows' processes.
    """
    name = f"gpu {device.index}"
    if device.problem:
        return [Finding(name, "fail", f"{device.name}: {device.problem}.", "Reboot before you train on it.")]
    parts = [device.name]
    if capability:
        bf16 = "with" if capability >= BF16_CAPABILITY else "without"
        parts.append(f"compute {capability[0]}.{capability[1]}, {bf16} bf16")
    if device.power_limit_w is not None:
        parts.append(f"limit {device.power_limit_w:.0f} W")
    if device.temperature_c is not None:
        limit = f" (slows down at {device.temperature_limit_c:.0f})" if device.temperature_limit_c else ""
        parts.append(f"{device.temperature_c:.0f} °C{limit}")
    found = [Finding(name, "ok", ", ".join(parts))]
    hot = [reason for reason in device.throttle_reasons if "slowdown" in reason or reason == "power brake"]
    if hot:
        hint = "Check its fans, dust and power cables: it trains slower than it could."
        found.append(Finding(f"{name} clock", "warn", f"held back right now by {', '.join(hot)}", hint))
    if device.available is not None and device.memory_total:
        found.append(_memory(f"{name} memory", device.available, device.memory_total, processes, wsl=wsl))
    return found


def _memory(name: str, free: int, total: int, processes: list[GpuProcess], *, wsl: bool) -> Finding:
    what = f"{format_bytes(free)} of {format_bytes(total)} free"
    if free >= _ENOUGH_FREE * total:
        return Finding(name, "ok", what)
    holders = [describe_process(item) for item in processes]
    if not holders and wsl:
        hint = "Windows does not tell which of its programs hold it: close games, browsers and the like there."
        return Finding(name, "warn", what, hint)
    if not holders:
        hint = "No process admits to it: one that has died badly may still hold it; a reboot frees it."
        return Finding(name, "warn", what, hint)
    return Finding(name, "warn", f"{what}; held by {'; '.join(holders)}", "End what you do not need before you train.")


def describe_process(item: GpuProcess) -> str:
    """A process in words: ``pid 4312 (ollama of anna, 5.1 GB, for 2h 05m)``."""
    known, age = named(item), age_of(item)
    who = f"{known.name} of {known.owner}" if known.name else "a process that is gone or in another container"
    size = f", {format_bytes(item.memory)}" if item.memory else ""
    since = f", for {format_duration(age)}" if known.name and age is not None else ""
    return f"pid {item.pid} ({who}{size}{since})"


def _pci_card(root: Path = Path("/sys/bus/pci/devices")) -> bool:
    """True if an NVIDIA display device is on the PCI bus, with or without a driver."""
    try:
        devices = list(root.iterdir())
    except OSError:
        return False
    return any(
        _text(device / "vendor") == "0x10de" and _text(device / "class").startswith("0x03") for device in devices
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
