"""A made-up ``/sys`` with AMD cards, as ``amdgpu`` fills it by its documentation; nothing is taken from a card."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

#: A Radeon RX 7900 XTX.
CARD: dict[str, Any] = json.loads(Path(__file__).with_name("amd_files.json").read_text())
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


def make_processes(
    root: Path, memory: dict[int, int], number: str = "51234", minor: int = 128, version: int = 110000
) -> None:
    """Write the driver for computing: a card with its version (that of gfx1100), and the processes that compute on it,
    with their memory in bytes."""
    kfd = root / "sys/class/kfd/kfd"
    for node, (identity, render) in enumerate((("0", 0), (number, minor))):
        directory = kfd / f"topology/nodes/{node}"
        directory.mkdir(parents=True)
        (directory / "gpu_id").write_text(f"{identity}\n")
        (directory / "properties").write_text(
            f"cpu_cores_count 0\ngfx_target_version {version}\ndrm_render_minor {render}\nnum_xcc 1\n"
        )
    for pid, size in memory.items():
        directory = kfd / f"proc/{pid}"
        directory.mkdir(parents=True)
        (directory / f"vram_{number}").write_text(f"{size}\n")
