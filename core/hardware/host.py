"""The machine around the devices: load, memory, disk, and the processor's heat and power."""

from __future__ import annotations

import os
import shutil

import psutil

from core import paths
from core.hardware.cpu import Cpu
from core.hardware.rapl import Rapl
from core.hardware.snapshot import Device, Host


class HostReader:
    """A reader of the CPU as a device, and of the machine. Its disk may hang, so it belongs in a
    :class:`core.hardware.source.Watched`.

    Args:
        rapl: The counters of the processor's energy; None: those of this machine.
    """

    def __init__(self, rapl: Rapl | None = None) -> None:
        self._cpu = Cpu(rapl)
        self._is_first = True

    def read(self) -> tuple[Device, Host]:
        """Both in their current state."""
        cpu, swap, cores = self._cpu.device(), psutil.swap_memory(), psutil.cpu_percent(percpu=True)
        # The first answer of psutil is meaningless.
        shares, self._is_first = [] if self._is_first else cores, False
        return cpu, Host(
            load=round(os.getloadavg()[0], 2),
            cores=[float(round(share)) for share in shares],
            ram_used=cpu.memory_used,
            ram_total=cpu.memory_total,
            swap_used=int(swap.used),
            swap_total=int(swap.total),
            disk_free=_disk_free(),
            cpu_temperature_c=cpu.temperature_c,
            cpu_power_w=cpu.power_w,
        )


def _disk_free() -> int | None:
    try:
        return shutil.disk_usage(paths.existing_parent(paths.home())).free
    except OSError:
        return None
