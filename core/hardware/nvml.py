"""NVIDIA GPUs, read through the driver's management library (NVML).

Reading needs no permissions beyond those to use the card.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.hardware.nvml_calls import NvmlCalls, NvmlUnavailableError
from core.hardware.nvml_card import NvmlCard
from core.hardware.snapshot import Device, GpuProcess
from core.hardware.visible import Identity, Visible
from core.text import one_line

__all__ = ["GpuProcess", "Nvml", "NvmlUnavailableError"]


class Nvml:
    """An open NVML handle. Its calls may hang with a broken driver: never call it from the thread of the interface.

    Raises:
        NvmlUnavailableError: If there is no usable driver.
    """

    def __init__(self) -> None:
        self.calls = NvmlCalls()
        self._nvml: Any = self.calls.library
        self._cards: dict[int, NvmlCard] = {}
        self._identities: dict[int, Identity] = {}

    def close(self) -> None:
        """Shut the library down."""
        self.calls.close()

    @property
    def driver_version(self) -> str | None:
        """The driver version: ``580.95.05``."""
        return self.calls.ask(self._nvml.nvmlSystemGetDriverVersion)

    @property
    def cuda_version(self) -> str | None:
        """The newest CUDA version that the driver supports: ``13.0``."""
        number = self.calls.ask(self._nvml.nvmlSystemGetCudaDriverVersion)
        return f"{number // 1000}.{number % 1000 // 10}" if number else None

    def count(self) -> int:
        """Number of GPUs, the lost ones included."""
        return self.calls.ask(self._nvml.nvmlDeviceGetCount) or 0

    def devices(self) -> list[Device]:
        """All GPUs in their current state; one that cannot be read has the reason in ``problem``."""
        return [self.card(index).read() for index in range(self.count())]

    def identities(self) -> list[Identity]:
        """All GPUs by index and UUID."""
        return [self._identity(index) for index in range(self.count())]

    def device(self, visible: Visible) -> Device:
        """The current state of one GPU; its memory is that of the MIG instance where it is one."""
        return self.card(visible.index).read(visible.uuid if visible.is_instance else "")

    def card(self, index: int) -> NvmlCard:
        """The reader of one GPU."""
        if index not in self._cards:
            self._cards[index] = NvmlCard(self.calls, index)
        return self._cards[index]

    def power_range(self, index: int) -> tuple[float, float] | None:
        """The least and the greatest power limit that a GPU can be set to, in watts; None where it has none to set."""
        handle, _ = self.calls.handle(index)
        found = (
            None if handle is None else self.calls.ask(self._nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
        )
        return None if found is None else (found[0] / 1000, found[1] / 1000)

    def processes(self, index: int) -> list[GpuProcess]:
        """The processes that use memory of a GPU, most first."""
        return self.card(index).processes()

    def compute_capability(self, index: int) -> tuple[int, int] | None:
        """The compute capability: ``(8, 9)`` for an RTX 4090."""
        handle, _ = self.calls.handle(index)
        found = None if handle is None else self.calls.ask(self._nvml.nvmlDeviceGetCudaComputeCapability, handle)
        return None if found is None else (int(found[0]), int(found[1]))

    def _identity(self, index: int) -> Identity:
        nvml, ask = self._nvml, self.calls.ask
        handle, _ = self.calls.handle(index)
        if handle is None or not (uuid := self._uuid(handle)):
            # A card that is lost keeps its name.
            return self._identities.get(index, Identity(index))
        if (known := self._identities.get(index)) is not None and known.uuid == uuid and not known.instances:
            return known
        cores = ask(nvml.nvmlDeviceGetNumGpuCores, handle) or 0
        clock = ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM) or 0
        self._identities[index] = Identity(index, uuid, tuple(self._instances(handle)), cores * clock)
        return self._identities[index]

    def _instances(self, handle: Any) -> Iterator[str]:
        """The UUIDs of a GPU's MIG instances; none where it is not divided."""
        nvml, ask = self._nvml, self.calls.ask
        mode = ask(nvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        for place in range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            # Places may be empty.
            instance = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            if instance is not None and (uuid := self._uuid(instance)):
                yield uuid

    def _uuid(self, handle: Any) -> str:
        return one_line(self.calls.ask(self._nvml.nvmlDeviceGetUUID, handle) or "", 120)
