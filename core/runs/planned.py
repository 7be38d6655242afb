"""The memory that a run's plan predicts, as a place on the meter of its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.hardware.snapshot import Device
from core.runs.events import MemoryEvent


@dataclass(frozen=True)
class PlannedMemory:
    """The plan's figure.

    Args:
        bytes: What the run is predicted to take at its peak.
        used: Where the meter stands then: with what others use of the device.
    """

    bytes: int
    used: int


def planned_memory(memory: Mapping[str, MemoryEvent], device: Device, pid: int | None) -> PlannedMemory | None:
    """The plan's figure for a device; None while there is none.

    Args:
        memory: Newest figures of each device's memory.
        device: The device as it was read last.
        pid: The process of the run; None where it is not known.
    """
    from core.memory.plan import RECLAIMABLE

    event = next((event for event in memory.values() if event.predicted_bytes), None)
    if event is None or not event.predicted_bytes or not device.memory_total:
        return None
    if (event.device == "cpu") != (device.kind == "cpu"):
        return None
    predicted = sum(size for name, size in event.predicted_bytes.items() if name not in RECLAIMABLE)
    if device.kind == "cpu":
        # The limit is what is free and what the process has: the rest is that of others.
        others = device.memory_total - event.limit_bytes if event.limit_bytes is not None else 0
    else:
        others = sum(item.memory or 0 for item in device.processes if item.pid != pid)
    return PlannedMemory(predicted, predicted + max(others, 0))
