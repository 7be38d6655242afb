"""AMD GPUs, read from the files of the ``amdgpu`` driver under ``/sys``, which everybody may read.

Not through the package ``amdsmi``: it binds ROCm's library, raises a KeyError on import where that is missing, and has
little that these files do not. Units and names: the kernel's *Interfaces exposed by amdgpu*
(docs.kernel.org/gpu/amdgpu/thermal.html) and hwmon's (docs.kernel.org/hwmon/sysfs-interface.html).
"""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Mapping
from pathlib import Path

from core.hardware.cpu import read_number, read_text
from core.hardware.nvml import MOST_PROCESSES, named, plausible_limit
from core.hardware.snapshot import Device, GpuProcess
from core.hardware.visible import Identity
from core.text import one_line

_VENDOR = "0x1002"
#: Least memory of a card in bytes; with less it is integrated graphics, which nobody trains on.
_LEAST_MEMORY = 2 << 30
#: Where the kernel's names of devices may be.
_PCI_NAMES = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids")
#: Data-center architectures with matrix instructions for bf16: MI100, 200, 300 and 350.
_CDNA = ("gfx908", "gfx90a", "gfx940", "gfx941", "gfx942", "gfx950")
#: GT/s of a lane, by generation of PCIe.
_SPEEDS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
#: The sensor that throttles first, best first: the hottest spot, else the edge of the die.
_SENSORS = ("junction", "edge")
#: Throttling in the driver's table of metrics, version 1.3 (RDNA 2 and 3, CDNA): place, and bits that mean the same.
_METRICS_VERSION, _THROTTLE_PLACE = (1, 3), 112
_THROTTLING: tuple[tuple[int, str], ...] = (
    (0x0000_0000_0000_00FF, "power cap"),
    (0x0000_0000_00FF_0000, "current limit"),
    (0x0000_0004_0000_0000, "memory temperature"),
    (0x0000_003B_0000_0000, "thermal slowdown"),
    (0x0000_3FC0_0000_0000, "voltage regulator temperature"),
    (0x0000_C000_0000_0000, "hardware thermal slowdown"),
)


class AmdSource:
    """AMD's cards in sysfs. Reads do not hang for long, and a removed card has no files.

    Args:
        root: The root of the file system, of another tree in tests.
    """

    reason = ""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._names: dict[Path, str] = {}

    def read(self, only: str | None = None) -> list[Device]:
        """The cards in their current state; ``only`` is the UUID of one."""
        cards = enumerate(find_cards(self._root))
        return [self._device(index, path) for index, path in cards if only in (None, uuid_of(path))]

    def _device(self, index: int, path: Path) -> Device:
        sensors = _sensors(path)
        chip = _chip(path)
        temperature, limit, shutdown = next((sensors[name] for name in _SENSORS if name in sensors), (None, None, None))
        memory_temperature, memory_limit, _ = sensors.get("mem", (None, None, None))
        used, total = read_number(path / "mem_info_vram_used"), read_number(path / "mem_info_vram_total")
        fans = _fans(chip)
        if path not in self._names:
            self._names[path] = _name(path, self._root)
        return Device(
            index=index,
            kind="rocm",
            name=self._names[path],
            uuid=uuid_of(path),
            temperature_c=temperature,
            temperature_limit_c=limit,
            temperature_slowdown_c=limit,
            temperature_shutdown_c=shutdown,
            temperature_margin_c=None if temperature is None or limit is None else limit - temperature,
            memory_temperature_c=memory_temperature,
            memory_temperature_limit_c=memory_limit,
            memory_used=used,
            memory_total=total,
            utilization=_scaled(path / "gpu_busy_percent", 1),
            # Newer cards report the present power only, older ones its mean.
            power_w=_scaled(chip / "power1_average", 1e6) or _scaled(chip / "power1_input", 1e6),
            power_limit_w=_scaled(chip / "power1_cap", 1e6),
            power_limit_min_w=_scaled(chip / "power1_cap_min", 1e6),
            power_limit_max_w=_scaled(chip / "power1_cap_max", 1e6),
            fan=max(fans, default=None),
            fans=fans,
            clock=_clock(path / "pp_dpm_sclk", chip / "freq1_input"),
            memory_clock=_clock(path / "pp_dpm_mclk", chip / "freq2_input"),
            pcie_generation=_generation(path / "current_link_speed"),
            pcie_width=read_number(path / "current_link_width"),
            pcie_generation_max=_generation(path / "max_link_speed"),
            pcie_width_max=read_number(path / "max_link_width"),
            energy_j=_scaled(chip / "energy1_input", 1e6),
            throttle_reasons=_throttle_reasons(path / "gpu_metrics"),
            processes=_processes(path, self._root),
        )


def find_cards(root: Path = Path("/")) -> list[Path]:
    """The directories of AMD's cards fit for training, in bus order."""
    found = []
    for card in (root / "sys/class/drm").glob("card*"):
        device = card / "device"
        if not re.fullmatch(r"card\d+", card.name) or read_text(device / "vendor") != _VENDOR:
            continue
        if (read_number(device / "mem_info_vram_total") or 0) >= _LEAST_MEMORY:
            found.append(device)
    return sorted(found, key=lambda device: device.resolve().name)


def uuid_of(device: Path) -> str:
    """A stable name of the card: by its own number, else by its place on the bus."""
    number = read_text(device / "unique_id")
    return f"AMD-{number}" if number.strip("0") else f"AMD-{device.resolve().name}"


def uuid_at(place: str, root: Path = Path("/")) -> str:
    """The UUID of the card at a place on the bus, ``0000:03:00.0``; empty if there is none."""
    return next((uuid_of(device) for device in find_cards(root) if device.resolve().name == place), "")


def identities(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> tuple[Identity, ...]:
    """The cards fit for training, in bus order, as the choice of a card needs them."""
    return tuple(
        Identity(index, uuid_of(device), vendor="AMD", architecture=architecture_of(device, root, environment))
        for index, device in enumerate(find_cards(root))
    )


def architecture_of(device: Path, root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> str:
    """The architecture of a card as ROCm names it (``gfx1100``), from the driver for computing (KFD) or the variable
    that overrides it; empty if unknown.

    KFD has it as one decimal number, two digits each for the last two parts; in the name these are hexadecimal.
    """
    override = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", environment.get("HSA_OVERRIDE_GFX_VERSION", ""))
    if override is not None:
        major, minor, stepping = map(int, override.groups())
    else:
        match = re.search(r"^gfx_target_version (\d+)$", _compute_properties(device, root)[1], re.MULTILINE)
        version = int(match[1]) if match else 0
        major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{stepping:x}" if major else ""


def has_bf16(architecture: str) -> bool:
    """True if an architecture has matrix instructions for bf16: RDNA 3 and newer, and CDNA."""
    match = re.fullmatch(r"gfx(\d+)[0-9a-f]{2}", architecture)
    return match is not None and (int(match[1]) >= 11 or architecture in _CDNA)


def driver_version(root: Path = Path("/")) -> str:
    """The version of the driver: its own, else the kernel's, with which it comes."""
    return one_line(read_text(root / "sys/module/amdgpu/version") or f"Linux {platform.release()}", 80)


def power_cap_of(device: Path) -> Path:
    """The file that holds a card's power limit, in millionths of a watt."""
    return _chip(device) / "power1_cap"


def _chip(device: Path) -> Path:
    return next(iter(sorted((device / "hwmon").glob("hwmon*"))), device / "hwmon")


def _sensors(device: Path) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Temperature, limit and shutdown in °C, by the sensor's label."""
    chip = _chip(device)
    found: dict[str, tuple[float | None, float | None, float | None]] = {}
    for place in range(1, 4):
        temperature = _scaled(chip / f"temp{place}_input", 1000)
        limits = [_scaled(chip / f"temp{place}_{kind}", 1000) for kind in ("crit", "emergency")]
        limit, shutdown = (None if value is None else plausible_limit(value) for value in limits)
        if temperature is not None:
            # Cards before Vega have one sensor without a label.
            found[read_text(chip / f"temp{place}_label") or "edge"] = (temperature, limit, shutdown)
    return found


def _fans(chip: Path) -> list[float]:
    """Fan speeds in percent: the driver's PWM setting, else revolutions against the maximum."""
    asked = _scaled(chip / "pwm1", 2.55)
    if asked is not None:
        return [round(asked)]
    turns, most = read_number(chip / "fan1_input"), read_number(chip / "fan1_max")
    return [round(100 * turns / most)] if turns is not None and most else []


def _clock(levels: Path, frequency: Path) -> float | None:
    """A clock in MHz: the current frequency, else the level marked with a star."""
    if (hertz := _scaled(frequency, 1e6)) is not None:
        return hertz
    match = re.search(r"(\d+)\s*Mhz\s*\*", read_text(levels), re.IGNORECASE)
    return float(match[1]) if match else None


def _generation(path: Path) -> int | None:
    match = re.match(r"(\d+(?:\.\d+)?)", read_text(path))
    return _SPEEDS.get(float(match[1])) if match else None


def _throttle_reasons(path: Path) -> list[str]:
    """Reasons for throttling by the driver's table of metrics, whose layout is known for one version."""
    try:
        table = path.read_bytes()
    except OSError:
        return []
    if len(table) < _THROTTLE_PLACE + 8 or tuple(table[2:4]) != _METRICS_VERSION:
        return []
    (bits,) = struct.unpack_from("<Q", table, _THROTTLE_PLACE)
    # All ones: the driver has no such value for this card.
    return [words for mask, words in _THROTTLING if bits & mask] if bits != (1 << 64) - 1 else []


def _processes(device: Path, root: Path) -> list[GpuProcess]:
    """The processes that compute on a card, most memory first; none if the driver for computing is not loaded."""
    number, _ = _compute_properties(device, root)
    found = []
    for path in (root / "sys/class/kfd/kfd/proc").glob("*") if number else ():
        if path.name.isdecimal() and (memory := read_number(path / f"vram_{number}")):
            found.append(GpuProcess(int(path.name), memory))
    found.sort(key=lambda item: -(item.memory or 0))
    return [named(item) for item in found[:MOST_PROCESSES]]


def _compute_properties(device: Path, root: Path) -> tuple[str, str]:
    """The compute driver's number of a card and its properties, found by their common node under ``/dev/dri``; empty
    where it does not list the card."""
    minors = {path.name.removeprefix("renderD") for path in (device / "drm").glob("renderD*")}
    for node in (root / "sys/class/kfd/kfd/topology/nodes").glob("*"):
        properties = read_text(node / "properties")
        match = re.search(r"^drm_render_minor (\d+)$", properties, re.MULTILINE)
        if match and match[1] in minors:
            return read_text(node / "gpu_id"), properties
    return "", ""


def _name(device: Path, root: Path) -> str:
    """The card's name: its own, else from the list of PCI devices, else its number."""
    own = read_text(device / "product_name")
    if own:
        return one_line(own if own.startswith("AMD") else f"AMD {own}", 80)
    number = read_text(device / "device").removeprefix("0x").lower()
    for place in _PCI_NAMES:
        match = re.search(rf"^1002 .*?^\t{number}  ([^\n]+)", read_text(root / place), re.MULTILINE | re.DOTALL)
        if match and number:
            inside = re.search(r"\[([^\]]+)\]", match[1])
            return one_line(f"AMD {inside[1] if inside else match[1]}", 80)
    return f"AMD GPU {number}".strip()


def _scaled(path: Path, divisor: float) -> float | None:
    number = read_number(path)
    return None if number is None else round(number / divisor, 3)
