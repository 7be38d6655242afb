"""A made-up ``/sys`` with AMD cards, as ``amdgpu`` fills it by its documentation; nothing is taken from a card."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

#: A Radeon RX 7900 XTX.
CARD: dict[str, Any] = {
    "vendor": "0x1002",
    "device": "0x744c",
    "unique_id": "d6c8e5a2f0914b37",
    "gpu_busy_percent": "97",
    "mem_info_vram_total": str(24 * 2**30),
    "mem_info_vram_used": str(18 * 2**30),
    "current_link_speed": "16.0 GT/s PCIe",
    "current_link_width": "16",
    "max_link_speed": "32.0 GT/s PCIe",
    "max_link_width": "16",
    "pp_dpm_sclk": "0: 500Mhz\n1: 2371Mhz *\n2: 2526Mhz",
    "pp_dpm_mclk": "0: 96Mhz\n1: 1249Mhz *",
    "hwmon/hwmon4/temp1_label": "edge",
    "hwmon/hwmon4/temp1_input": "61000",
    "hwmon/hwmon4/temp1_crit": "100000",
    "hwmon/hwmon4/temp2_label": "junction",
    "hwmon/hwmon4/temp2_input": "83000",
    "hwmon/hwmon4/temp2_crit": "110000",
    "hwmon/hwmon4/temp2_emergency": "115000",
    "hwmon/hwmon4/temp3_label": "mem",
    "hwmon/hwmon4/temp3_input": "78000",
    "hwmon/hwmon4/temp3_crit": "108000",
    "hwmon/hwmon4/power1_average": "301000000",
    "hwmon/hwmon4/power1_cap": "339000000",
    "hwmon/hwmon4/power1_cap_min": "305000000",
    "hwmon/hwmon4/power1_cap_max": "389000000",
    "hwmon/hwmon4/pwm1": "102",
    "hwmon/hwmon4/fan1_input": "1210",
    "drm/renderD128/dev": "226:128",
}
PLACE = "0000:03:00.0"


def metrics(throttling: int, version: tuple[int, int] = (1, 3)) -> bytes:
    """The driver's table of metrics with its bits of throttling."""
    return struct.pack("<HBB", 120, *version) + bytes(108) + struct.pack("<Q", throttling)


def make_card(root: Path, values: dict[str, Any], number: int = 0, place: str = PLACE) -> Path:
    """Write a card, and return its directory."""
    device = root / "sys/devices" / place
    for name, value in values.items():
        path = device / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode())
    card = root / f"sys/class/drm/card{number}"
    card.mkdir(parents=True)
    (card / "device").symlink_to(device)
    (root / f"sys/class/drm/card{number}-HDMI-A-1").mkdir()
    return device


def make_processes(root: Path, memory: dict[int, int], number: str = "51234", minor: int = 128) -> None:
    """Write the processes that compute on a card, with their memory in bytes."""
    kfd = root / "sys/class/kfd/kfd"
    for node, (identity, render) in enumerate((("0", 0), (number, minor))):
        directory = kfd / f"topology/nodes/{node}"
        directory.mkdir(parents=True)
        (directory / "gpu_id").write_text(f"{identity}\n")
        (directory / "properties").write_text(f"cpu_cores_count 0\ndrm_render_minor {render}\nnum_xcc 1\n")
    for pid, size in memory.items():
        directory = kfd / f"proc/{pid}"
        directory.mkdir(parents=True)
        (directory / f"vram_{number}").write_text(f"{size}\n")
