"""NVIDIA GPUs, read through the driver's management library (NVML).

Every value is queried separately: a card that does not report one (a laptop's fan, a virtual GPU's power) leaves that
value None and keeps the others. Reading needs no permissions beyond those to use the card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from core.hardware.snapshot import Device
from core.hardware.visible import Identity, Visible
from core.text import one_line

T = TypeVar("T")

#: Reasons for throttling, by NVML's bit; idling is not reported.
EVENT_REASONS: dict[int, str] = {
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
    0x100: "display clock",
}
#: Plausible slowdown thresholds in °C; a value outside is a driver's placeholder.
LIMIT_RANGE_C = (50, 120)

_INIT_SENTENCES: dict[int, tuple[str, str]] = {
    9: ("The NVIDIA driver is installed but not loaded.", "Load it with 'sudo modprobe nvidia', or reboot."),
    4: (
        "This user may not use the NVIDIA devices.",
        "Join the group that owns /dev/nvidia* (often 'video' or 'render').",
    ),
    12: ("There is no NVIDIA driver library here.", "With an NVIDIA card, install its driver."),
    15: ("A GPU has fallen off the bus.", "Reboot; if it comes back, check cooling, power and seating of the card."),
    18: (
        "The NVIDIA kernel module and its library are of different versions: the driver was updated while running.",
        "Reboot, or reload the nvidia kernel modules.",
    ),
}
_GONE = {
    15: "the GPU has fallen off the bus; reboot, and check its cooling, power and seating",
    16: "the GPU must be reset",
}


class NvmlUnavailableError(Exception):
    """NVML cannot be used; ``reason`` and ``hint`` are sentences.

    ``absent`` distinguishes a machine without an NVIDIA driver from one whose driver is broken.
    """

    def __init__(self, reason: str, hint: str, *, absent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.absent = absent


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses memory of a GPU; ``memory`` in bytes, None when the driver does not report it."""

    pid: int
    memory: int | None


class Nvml:
    """An open NVML handle. Its calls may hang with a broken driver: never call it from the thread of the interface.

    Raises:
        NvmlUnavailableError: If there is no usable driver.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NvmlUnavailableError(
                "The package nvidia-ml-py is not installed.", "Install localtune-tui again.", absent=True
            ) from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            code = int(error.value)
            reason, hint = _INIT_SENTENCES.get(
                code, (f"The NVIDIA driver does not answer: {error} (NVML error {code}).", "Try 'nvidia-smi'.")
            )
            raise NvmlUnavailableError(reason, hint, absent=code == 12) from error
        self._limits: dict[int, float] = {}
        self._names: dict[int, str] = {}
        self._identities: dict[int, Identity] = {}

    def close(self) -> None:
        """Shut the library down."""
        self._ask(self._nvml.nvmlShutdown)

    @property
    def driver_version(self) -> str | None:
        """The driver version: ``580.95.05``."""
        return self._ask(self._nvml.nvmlSystemGetDriverVersion)

    @property
    def cuda_version(self) -> str | None:
        """The newest CUDA version that the driver supports: ``13.0``."""
        number = self._ask(self._nvml.nvmlSystemGetCudaDriverVersion)
        return f"{number // 1000}.{number % 1000 // 10}" if number else None

    def count(self) -> int:
        """Number of GPUs, the lost ones included."""
        return self._ask(self._nvml.nvmlDeviceGetCount) or 0

    def devices(self) -> list[Device]:
        """All GPUs in their current state; one that cannot be read has the reason in ``problem``."""
        return [self._device(index) for index in range(self.count())]

    def identities(self) -> list[Identity]:
        """All GPUs by index and UUID."""
        return [self._identity(index) for index in range(self.count())]

    def device(self, visible: Visible) -> Device:
        """The current state of one GPU; its memory is that of the MIG instance where it is one."""
        return self._device(visible.index, visible.uuid if visible.is_instance else "")

    def energy_joules(self, index: int) -> float | None:
        """Energy that a GPU has used since the driver was loaded; None without a counter."""
        handle, _ = self._handle(index)
        if handle is None:
            return None
        millijoules = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return None if millijoules is None else millijoules / 1000

    def power_range(self, index: int) -> tuple[float, float] | None:
        """The least and the greatest power limit that a GPU can be set to, in watts; None where it has none to set."""
        handle, _ = self._handle(index)
        found = None if handle is None else self._ask(self._nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
        return None if found is None else (found[0] / 1000, found[1] / 1000)

    def processes(self, index: int) -> list[GpuProcess]:
        """The processes that use memory of a GPU, most first."""
        handle, _ = self._handle(index)
        if handle is None:
            return []
        found: dict[int, int | None] = {}
        for ask in (
            self._nvml.nvmlDeviceGetComputeRunningProcesses,
            self._nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for item in self._ask(ask, handle) or []:
                found[int(item.pid)] = item.usedGpuMemory
        return sorted((GpuProcess(pid, memory) for pid, memory in found.items()), key=lambda item: -(item.memory or 0))

    def compute_capability(self, index: int) -> tuple[int, int] | None:
        """The compute capability: ``(8, 9)`` for an RTX 4090."""
        handle, _ = self._handle(index)
        found = None if handle is None else self._ask(self._nvml.nvmlDeviceGetCudaComputeCapability, handle)
        return None if found is None else (int(found[0]), int(found[1]))

    def _identity(self, index: int) -> Identity:
        nvml, ask = self._nvml, self._ask
        handle, _ = self._handle(index)
        if handle is None or not (uuid := self._uuid(handle)):
            # A card that is lost keeps its name.
            return self._identities.get(index, Identity(index))
        cores = ask(nvml.nvmlDeviceGetNumGpuCores, handle) or 0
        clock = ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM) or 0
        self._identities[index] = Identity(index, uuid, tuple(self._instances(handle)), cores * clock)
        return self._identities[index]

    def _instances(self, handle: Any) -> Iterator[str]:
        """The UUIDs of a GPU's MIG instances; none where it is not divided."""
        nvml, ask = self._nvml, self._ask
        mode = ask(nvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        for place in range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            # Places may be empty.
            instance = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            if instance is not None and (uuid := self._uuid(instance)):
                yield uuid

    def _uuid(self, handle: Any) -> str:
        return one_line(self._ask(self._nvml.nvmlDeviceGetUUID, handle) or "", 120)

    def _device(self, index: int, instance: str = "") -> Device:
        handle, error = self._handle(index)
        if handle is None:
            return Device(index=index, kind="cuda", name=self._names.get(index, f"GPU {index}"), problem=error)
        nvml, ask = self._nvml, self._ask
        # The first query shows whether the card is still there; the others then need not report it.
        problem = ""
        try:
            self._names[index] = one_line(nvml.nvmlDeviceGetName(handle), 80)
            nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as failure:
            problem = _GONE.get(int(failure.value), "")
        name = self._names.get(index, f"GPU {index}")
        if problem:
            return Device(index=index, kind="cuda", name=name, problem=problem)
        holder = (ask(nvml.nvmlDeviceGetHandleByUUID, instance) if instance else None) or handle
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, holder, nvml.nvmlMemory_v2) or ask(
            nvml.nvmlDeviceGetMemoryInfo, holder
        )
        temperature = self._temperature(handle)
        utilization = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return Device(
            index=index,
            kind="cuda",
            name=name,
            temperature_c=temperature,
            temperature_limit_c=self._limit(index, handle, temperature),
            memory_used=int(memory.used) if memory else None,
            memory_total=int(memory.total) if memory else None,
            # Not the total without the used: the driver keeps some for itself, and with version 2 counts it in neither.
            memory_free=int(memory.free) if memory else None,
            uuid=instance or self._uuid(handle),
            utilization=float(utilization.gpu) if utilization else None,
            power_w=_scaled(ask(nvml.nvmlDeviceGetPowerUsage, handle), 1000),
            power_limit_w=_scaled(ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1000),
            fan=_scaled(ask(nvml.nvmlDeviceGetFanSpeed, handle), 1),
            clock=_scaled(ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM), 1),
            throttle_reasons=self._reasons(handle),
        )

    def _handle(self, index: int) -> tuple[Any, str]:
        try:
            return self._nvml.nvmlDeviceGetHandleByIndex(index), ""
        except self._nvml.NVMLError as error:
            return None, _GONE.get(int(error.value), f"the driver does not give access to it: {error}")

    def _ask(self, function: Callable[..., T], *args: Any) -> T | None:
        """One value, or None when the card, the driver or the binding does not have it."""
        try:
            return function(*args)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError):
            return None

    def _temperature(self, handle: Any) -> float | None:
        nvml = self._nvml
        value = self._ask(nvml.nvmlDeviceGetTemperatureV, handle, nvml.NVML_TEMPERATURE_GPU)
        if value is None:
            value = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return None if value is None else float(value)

    def _limit(self, index: int, handle: Any, temperature: float | None) -> float | None:
        """The temperature at which the card begins to slow down, in °C.

        Cards from Ada on report margins instead: the current one, and the one at which they slow down. The sum
        moves by a degree with every reading, so the lowest one seen is kept.
        """
        nvml = self._nvml
        found: float | None = None
        margin = self._ask(nvml.nvmlDeviceGetMarginTemperature, handle)
        slowdown = self._field(handle, nvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT)
        if temperature is not None and margin is not None and slowdown is not None:
            found = _plausible_limit(temperature + margin - slowdown)
        if found is None:
            degrees = self._ask(
                nvml.nvmlDeviceGetTemperatureThreshold, handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            )
            found = None if degrees is None else _plausible_limit(float(degrees))
        if found is not None:
            self._limits[index] = min(found, self._limits.get(index, found))
        return self._limits.get(index)

    def _field(self, handle: Any, field: int) -> int | None:
        """A field value that is an integer."""
        nvml = self._nvml
        values = self._ask(nvml.nvmlDeviceGetFieldValues, handle, [field])
        if not values or values[0].nvmlReturn != nvml.NVML_SUCCESS:
            return None
        member = {
            nvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
            nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        }.get(values[0].valueType)
        return None if member is None else int(getattr(values[0].value, member))

    def _reasons(self, handle: Any) -> list[str]:
        bits = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if bits is None:
            # The name before driver 535.
            bits = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return [words for bit, words in EVENT_REASONS.items() if bits is not None and bits & bit]


def _scaled(value: int | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _plausible_limit(degrees: float) -> float | None:
    low, high = LIMIT_RANGE_C
    return degrees if low <= degrees <= high else None
