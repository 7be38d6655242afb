"""One NVIDIA card as a snapshot.

Every value is queried separately: a card that does not report one (a laptop's fan, a virtual GPU's power) leaves that
value None and keeps the others. What never changes is asked once, and what takes long, every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psutil

from core.hardware.nvml_calls import NvmlCalls
from core.hardware.snapshot import Device, GpuProcess
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
#: Plausible thresholds in °C; a value outside is a driver's placeholder. Memory may run hotter than the processor.
LIMIT_RANGE_C = (50, 120)
#: Seconds between two readings of what takes long: NVML counts PCIe traffic for 20 ms in each direction, and processes
#: are looked up one by one.
SLOW_SECONDS = 10.0
#: Most processes of a card that are named; whoever shares a card shares it with few.
MOST_PROCESSES = 8
_GONE = {
    15: "the GPU has fallen off the bus; reboot, and check its cooling, power and seating",
    16: "the GPU must be reset",
}


def explain_loss(code: int) -> str:
    """Why a card cannot be reached, by the code of NVML's error, as a sentence without its capital and full stop."""
    return _GONE.get(code, f"the driver does not give access to it (NVML error {code})")


@dataclass(frozen=True)
class _Steady:
    """Facts of a card that never change while a driver is loaded."""

    name: str
    uuid: str
    fans: int
    thresholds: tuple[float | None, float | None, float | None, float | None]
    """Shutdown, slowdown, the most for memory, the most for the processor, in °C; cards from Ada on have none."""
    power_range: tuple[float, float] | None
    pcie: tuple[int | None, int | None]


@dataclass(frozen=True)
class _Slow:
    """Readings that take NVML long, kept for a while."""

    moment: float
    processes: list[GpuProcess]
    pcie: tuple[float | None, float | None]


class NvmlCard:
    """A reader of one card.

    Args:
        calls: The opened library.
        index: The card's index in NVML.
    """

    def __init__(self, calls: NvmlCalls, index: int) -> None:
        self._calls, self._nvml, self.index = calls, calls.library, index
        self._steady: _Steady | None = None
        self._slow: _Slow | None = None
        self._limits: dict[str, float] = {}

    def read(self, instance: str = "") -> Device:
        """The card in its current state.

        Args:
            instance: The UUID of the MIG instance whose memory counts; empty: the card's own.
        """
        handle, code = self._calls.handle(self.index)
        if handle is not None:
            # The first query shows whether the card is still there; the others then need not report it.
            code = self._find_loss(handle)
        if handle is None or code:
            name = self._steady.name if self._steady else f"GPU {self.index}"
            uuid = self._steady.uuid if self._steady else ""
            return Device(index=self.index, kind="cuda", name=name, uuid=uuid, problem=explain_loss(code))
        steady = self._steady = self._steady or self._read_steady(handle)
        device = self._read_fast(handle, steady, instance)
        return self._with_temperatures(device, handle, steady)

    def read_slow(self, device: Device) -> Device:
        """A reading with the processes and the PCIe traffic too, which are those of the last few seconds."""
        handle, _ = self._calls.handle(self.index)
        now = time.monotonic()
        if handle is not None and (self._slow is None or now - self._slow.moment >= SLOW_SECONDS):
            traffic = (
                self._ask(self._nvml.nvmlDeviceGetPcieThroughput, handle, self._nvml.NVML_PCIE_UTIL_TX_BYTES),
                self._ask(self._nvml.nvmlDeviceGetPcieThroughput, handle, self._nvml.NVML_PCIE_UTIL_RX_BYTES),
            )
            processes = [named(item) for item in self.processes()[:MOST_PROCESSES]]
            self._slow = _Slow(now, processes, (_times(traffic[0], 1000), _times(traffic[1], 1000)))
        if self._slow is None:
            return device
        sent, received = self._slow.pcie
        return replace(device, processes=self._slow.processes, pcie_tx=sent, pcie_rx=received)

    def processes(self) -> list[GpuProcess]:
        """The processes that use memory of the card, most first, without names."""
        handle, _ = self._calls.handle(self.index)
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

    def _ask(self, function: Callable[..., T], *args: Any) -> T | None:
        return self._calls.ask(function, *args)

    def _find_loss(self, handle: Any) -> int:
        """The error's code where the card is gone; 0 where it is there."""
        try:
            self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError as error:
            return int(error.value) if int(error.value) in _GONE else 0
        return 0

    def _read_steady(self, handle: Any) -> _Steady:
        nvml, ask = self._nvml, self._ask
        limits = ask(nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
        return _Steady(
            name=one_line(ask(nvml.nvmlDeviceGetName, handle) or f"GPU {self.index}", 80),
            uuid=one_line(ask(nvml.nvmlDeviceGetUUID, handle) or "", 120),
            fans=ask(nvml.nvmlDeviceGetNumFans, handle) or 0,
            thresholds=(
                self._threshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),
                self._threshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
                self._threshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX),
                self._threshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX),
            ),
            power_range=None if limits is None else (limits[0] / 1000, limits[1] / 1000),
            pcie=(
                ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
                ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            ),
        )

    def _threshold(self, handle: Any, kind: int) -> float | None:
        degrees = self._ask(self._nvml.nvmlDeviceGetTemperatureThreshold, handle, kind)
        return None if degrees is None else plausible_limit(float(degrees))

    def _read_fast(self, handle: Any, steady: _Steady, instance: str) -> Device:
        nvml, ask = self._nvml, self._ask
        holder = (ask(nvml.nvmlDeviceGetHandleByUUID, instance) if instance else None) or handle
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, holder, nvml.nvmlMemory_v2) or ask(
            nvml.nvmlDeviceGetMemoryInfo, holder
        )
        utilization = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        fans = self._fans(handle, steady.fans)
        low, high = steady.power_range or (None, None)
        return Device(
            index=self.index,
            kind="cuda",
            name=steady.name,
            uuid=instance or steady.uuid,
            memory_used=int(memory.used) if memory else None,
            memory_total=int(memory.total) if memory else None,
            # Not the total without the used: the driver keeps some for itself, and with version 2 counts it in neither.
            memory_free=int(memory.free) if memory else None,
            utilization=float(utilization.gpu) if utilization else None,
            power_w=_times(ask(nvml.nvmlDeviceGetPowerUsage, handle), 1 / 1000),
            power_limit_w=_times(ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1 / 1000),
            power_limit_min_w=low,
            power_limit_max_w=high,
            fan=max(fans, default=None),
            fans=fans,
            clock=_times(ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)),
            memory_clock=_times(ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM)),
            pcie_generation=ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            pcie_width=ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            pcie_generation_max=steady.pcie[0],
            pcie_width_max=steady.pcie[1],
            energy_j=_times(ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle), 1 / 1000),
            throttle_reasons=self._reasons(handle),
        )

    def _fans(self, handle: Any, count: int) -> list[float]:
        speeds = [self._ask(self._nvml.nvmlDeviceGetFanSpeed_v2, handle, fan) for fan in range(count)]
        if not any(speed is not None for speed in speeds):
            # The only call of drivers before 470.
            speeds = [self._ask(self._nvml.nvmlDeviceGetFanSpeed, handle)]
        return [float(speed) for speed in speeds if speed is not None]

    def _with_temperatures(self, device: Device, handle: Any, steady: _Steady) -> Device:
        """The device with its temperatures and their limits.

        Cards from Ada on report distances instead of thresholds: the current one to the nearest slowdown, and where
        on that scale slowdown and shutdown are.
        """
        nvml = self._nvml
        memory, slowdown_at, shutdown_at = self._calls.fields(
            handle,
            [
                nvml.NVML_FI_DEV_MEMORY_TEMP,
                nvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT,
                nvml.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT,
            ],
        )
        temperature = self._temperature(handle)
        shutdown, slowdown, memory_most, most = steady.thresholds
        margin = None if temperature is None else self._ask(nvml.nvmlDeviceGetMarginTemperature, handle)
        if temperature is not None and margin is not None:
            edge = temperature + margin
            most = self._steadied("most", edge, 0) or most
            slowdown = self._steadied("slowdown", edge, slowdown_at) or slowdown
            shutdown = self._steadied("shutdown", edge, shutdown_at) or shutdown
        limit = min((value for value in (most, slowdown) if value is not None), default=None)
        if margin is None and temperature is not None and limit is not None:
            margin = limit - temperature
        return replace(
            device,
            temperature_c=temperature,
            temperature_limit_c=limit,
            temperature_slowdown_c=slowdown,
            temperature_shutdown_c=shutdown,
            temperature_margin_c=None if margin is None else float(margin),
            # Cards without the sensor are known to report 0.
            memory_temperature_c=float(memory) if memory and 0 < memory < 150 else None,
            memory_temperature_limit_c=memory_most,
        )

    def _steadied(self, name: str, edge: float, offset: int | None) -> float | None:
        """A limit from distances; the sum moves by a degree with every reading, so the lowest one seen is kept."""
        found = None if offset is None else plausible_limit(edge - offset)
        if found is not None:
            self._limits[name] = min(found, self._limits.get(name, found))
        return self._limits.get(name)

    def _temperature(self, handle: Any) -> float | None:
        nvml = self._nvml
        value = self._ask(nvml.nvmlDeviceGetTemperatureV, handle, nvml.NVML_TEMPERATURE_GPU)
        if value is None:
            value = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return None if value is None else float(value)

    def _reasons(self, handle: Any) -> list[str]:
        bits = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if bits is None:
            # The name before driver 535.
            bits = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return [words for bit, words in EVENT_REASONS.items() if bits is not None and bits & bit]


def named(item: GpuProcess) -> GpuProcess:
    """A process with its name and owner, which stay empty where it is gone or in another container."""
    try:
        process = psutil.Process(item.pid)
        return replace(item, name=one_line(process.name(), 40), owner=one_line(process.username(), 40))
    except psutil.Error:
        return item


def age_of(item: GpuProcess) -> float | None:
    """Seconds that a process has been running; None where it is gone or in another container."""
    try:
        return max(time.time() - psutil.Process(item.pid).create_time(), 0.0)
    except psutil.Error:
        return None


def plausible_limit(degrees: float) -> float | None:
    """A threshold in °C, or None where it is a placeholder."""
    low, high = LIMIT_RANGE_C
    return degrees if low <= degrees <= high else None


def _times(value: int | None, factor: float = 1.0) -> float | None:
    return None if value is None else round(value * factor, 3)
