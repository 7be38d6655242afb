"""The NVIDIA card that a run would use, found without torch."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from core.hardware.nvml import Nvml, NvmlUnavailableError

#: Seconds allowed for the driver's answers.
_DRIVER_SECONDS = 5.0
#: The first compute capability whose tensor cores support bf16 (Ampere).
BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Card:
    """A GPU: its name, its memory in bytes, and its compute capability; None where the driver does not report it."""

    name: str
    memory_total: int | None
    capability: tuple[int, int] | None

    @property
    def has_bf16(self) -> bool | None:
        """Whether it computes well in bf16; None where its capability is unknown."""
        return None if self.capability is None else self.capability >= BF16_CAPABILITY


def find_card(timeout: float = _DRIVER_SECONDS, environment: Mapping[str, str] = os.environ) -> Card | None:
    """The card that ``hardware.device = "auto"`` takes; None where there is none, or the driver does not answer.

    Args:
        timeout: Seconds allowed for the driver's answers.
        environment: Environment variables, for ``CUDA_VISIBLE_DEVICES``.
    """
    index = _first_visible(environment.get("CUDA_VISIBLE_DEVICES"))
    if index is None:
        return None
    answers: queue.Queue[Card | None] = queue.Queue()
    # A daemon thread: a call into a wedged driver never returns and cannot be interrupted.
    threading.Thread(target=lambda: answers.put(_ask(index)), name="driver", daemon=True).start()
    try:
        return answers.get(timeout=timeout)
    except queue.Empty:
        return None


def _first_visible(value: str | None) -> int | None:
    """The first device of ``CUDA_VISIBLE_DEVICES``; a UUID counts as the first card."""
    if value is None:
        return 0
    first = value.partition(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return 0
    return int(first) if first.isdecimal() else None


def _ask(index: int) -> Card | None:
    try:
        nvml = Nvml()
    except NvmlUnavailableError:
        return None
    try:
        devices = nvml.devices()
        if index >= len(devices) or devices[index].problem:
            return None
        return Card(devices[index].name, devices[index].memory_total, nvml.compute_capability(index))
    finally:
        nvml.close()
