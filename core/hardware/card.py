"""The card that a run would use, found without torch."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.hardware import amd
from core.hardware.drivers import is_rocm
from core.hardware.nvml import Nvml, NvmlUnavailableError
from core.hardware.visible import Identity, Visible, find_gpu, visible_cards

T = TypeVar("T")

#: Seconds allowed for the driver's answers.
_DRIVER_SECONDS = 5.0
#: The first compute capability whose tensor cores support bf16 (Ampere).
BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Card:
    """A GPU: its name, its memory in bytes, and its compute capability; None if the driver does not report it.

    ``index`` and ``uuid`` are the driver's; an AMD card has an ``architecture`` (``gfx1100``) instead of a capability.
    """

    name: str
    memory_total: int | None
    capability: tuple[int, int] | None
    index: int = 0
    uuid: str = ""
    memory_free: int | None = None
    architecture: str = ""

    @property
    def has_bf16(self) -> bool | None:
        """True if it computes well in bf16; None if its capability is unknown."""
        if self.architecture:
            return amd.has_bf16(self.architecture)
        return None if self.capability is None else self.capability >= BF16_CAPABILITY


def find_card(
    timeout: float = _DRIVER_SECONDS,
    environment: Mapping[str, str] = os.environ,
    gpu: str | None = None,
    root: Path = Path("/"),
) -> Card | None:
    """The card that ``hardware.device = "auto"`` selects; None if there is none, or the driver does not answer.

    Args:
        timeout: Seconds allowed for the driver's answers.
        environment: Environment variables, for ``CUDA_VISIBLE_DEVICES``.
        gpu: ``hardware.gpu``; None: the first that CUDA sees.
        root: The root of the file system, for AMD's cards.
    """
    return ask_driver(lambda: _ask(environment, gpu, root), timeout)


def ask_driver(ask: Callable[[], T], timeout: float = _DRIVER_SECONDS) -> T | None:
    """The answer of the driver; None if it takes longer.

    In a daemon thread: a call into a wedged driver never returns and cannot be interrupted.
    """
    answers: queue.Queue[T] = queue.Queue()
    threading.Thread(target=lambda: answers.put(ask()), name="driver", daemon=True).start()
    try:
        return answers.get(timeout=timeout)
    except queue.Empty:
        return None


def choose(cards: Sequence[Identity], environment: Mapping[str, str], gpu: str | None) -> Visible | None:
    """The device that a run computes on.

    Args:
        cards: All cards, in NVML's order.
        environment: Environment variables.
        gpu: ``hardware.gpu``; None: the first that CUDA sees.

    Returns:
        None if CUDA sees none, or not that one.
    """
    visible = visible_cards(cards, environment)
    if gpu is None:
        return visible[0] if visible else None
    wanted = find_gpu(cards, gpu)
    # An instance of a visible card can be requested even if CUDA would take another.
    return wanted if wanted is not None and any(device.index == wanted.index for device in visible) else None


def _ask(environment: Mapping[str, str], gpu: str | None, root: Path) -> Card | None:
    if is_rocm() and (cards := amd.identities(root, environment)):
        chosen = choose(cards, environment, gpu)
        if chosen is None:
            return None
        (device,) = amd.AmdSource(root).read(chosen.uuid)
        architecture = cards[chosen.index].architecture
        return Card(device.name, device.memory_total, None, device.index, device.uuid, device.available, architecture)
    with suppress(NvmlUnavailableError), closing(Nvml()) as nvml:
        chosen = choose(nvml.identities(), environment, gpu)
        if chosen is not None and not (device := nvml.device(chosen)).problem:
            capability = nvml.compute_capability(chosen.index)
            return Card(device.name, device.memory_total, capability, chosen.index, chosen.uuid, device.available)
    return None
