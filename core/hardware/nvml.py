"""NVIDIA GPUs, read through the driver's management library (NVML).

Reading needs no permissions beyond those to use the card.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psutil

from core.hardware.snapshot import Device, GpuProcess, Xid
from core.hardware.visible import Identity, Visible, visible_cards
from core.text import one_line

T = TypeVar("T")

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


class NvmlUnavailableError(Exception):
    """NVML cannot be used; ``reason`` and ``hint`` are sentences.

    ``absent`` distinguishes a machine without an NVIDIA driver from one whose driver is broken.
    """

    def __init__(self, reason: str, hint: str, *, absent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.absent = absent


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
#: Seconds between two slow readings: NVML counts PCIe traffic for 20 ms in each direction, and processes
#: are looked up one by one.
SLOW_SECONDS = 10.0
#: Most processes of a card that are named.
MOST_PROCESSES = 8
_GONE = {
    15: "the GPU has fallen off the bus; reboot, and check its cooling, power and seating",
    16: "the GPU must be reset",
}


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
        nvml: The opened library.
        index: The card's index in NVML.
    """

    def __init__(self, nvml: Nvml, index: int) -> None:
        self._opened, self._nvml, self._ask, self.index = nvml, nvml.library, nvml.ask, index
        self._steady: _Steady | None = None
        self._slow: _Slow | None = None
        self._limits: dict[str, float] = {}

    def read(self, instance: str = "") -> Device:
        """The card in its current state.

        Args:
            instance: The UUID of the MIG instance whose memory counts; empty: the card's own.
        """
        handle, code = self._opened.handle(self.index)
        if handle is not None:
            # The first query shows whether the card is still there; the others then need not report it.
            code = self._find_loss(handle)
        if handle is None or code:
            name = self._steady.name if self._steady else f"GPU {self.index}"
            uuid = self._steady.uuid if self._steady else ""
            problem = _GONE.get(code, f"the driver does not give access to it (NVML error {code})")
            return Device(index=self.index, kind="cuda", name=name, uuid=uuid, problem=problem)
        steady = self._steady = self._steady or self._read_steady(handle)
        device = self._read_fast(handle, steady, instance)
        return self._with_temperatures(device, handle, steady)

    def read_slow(self, device: Device) -> Device:
        """A reading with the processes and the PCIe traffic, which are up to some seconds old."""
        handle, _ = self._opened.handle(self.index)
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
        handle, _ = self._opened.handle(self.index)
        if handle is None:
            return []
        found: dict[int, int | None] = {}
        for ask in (self._nvml.nvmlDeviceGetComputeRunningProcesses, self._nvml.nvmlDeviceGetGraphicsRunningProcesses):
            for item in self._ask(ask, handle) or []:
                found[int(item.pid)] = item.usedGpuMemory
        return sorted((GpuProcess(pid, memory) for pid, memory in found.items()), key=lambda item: -(item.memory or 0))

    def _find_loss(self, handle: Any) -> int:
        """The error code if the card is gone, else 0."""
        try:
            self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError as error:
            return int(error.value) if int(error.value) in _GONE else 0
        return 0

    def _read_steady(self, handle: Any) -> _Steady:
        nvml, ask = self._nvml, self._ask
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
            power_range=self._opened.power_range(self.index),
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
        memory, slowdown_at, shutdown_at = self._opened.fields(
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
    """The process with its name and owner, which stay empty if it is gone or in another container."""
    try:
        process = psutil.Process(item.pid)
        return replace(item, name=one_line(process.name(), 40), owner=one_line(process.username(), 40))
    except psutil.Error:
        return item


def age_of(item: GpuProcess) -> float | None:
    """Seconds that a process has been running; None if it is gone or in another container."""
    try:
        return max(time.time() - psutil.Process(item.pid).create_time(), 0.0)
    except psutil.Error:
        return None


def plausible_limit(degrees: float) -> float | None:
    """A threshold in °C, or None if it is a placeholder."""
    low, high = LIMIT_RANGE_C
    return degrees if low <= degrees <= high else None


def _times(value: int | None, factor: float = 1.0) -> float | None:
    return None if value is None else round(value * factor, 3)


class Nvml:
    """The opened library, with calls that return None instead of raising. They may hang with a broken driver: never
    call it from the thread of the interface.

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
        self.library: Any = pynvml
        """The module of bindings, for its constants and functions."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            code = int(error.value)
            reason, hint = _INIT_SENTENCES.get(
                code, (f"The NVIDIA driver does not answer: {error} (NVML error {code}).", "Try 'nvidia-smi'.")
            )
            raise NvmlUnavailableError(reason, hint, absent=code == 12) from error
        self._cards: dict[int, NvmlCard] = {}
        self._identities: dict[int, Identity] = {}

    def close(self) -> None:
        """Shut the library down."""
        self.ask(self.library.nvmlShutdown)

    def ask(self, function: Callable[..., T], *args: Any) -> T | None:
        """A value, or None if the card, the driver or the binding does not have it."""
        try:
            return function(*args)
        except (self.library.NVMLError, self.library.NVMLLibraryMismatchError):
            return None

    def handle(self, index: int) -> tuple[Any, int]:
        """The handle of a card and 0, or None and the error's code."""
        try:
            return self.library.nvmlDeviceGetHandleByIndex(index), 0
        except self.library.NVMLError as error:
            return None, int(error.value)

    def fields(self, handle: Any, wanted: Sequence[int]) -> list[int | None]:
        """Field values that are integers, all read by one call."""
        nvml = self.library
        found = self.ask(nvml.nvmlDeviceGetFieldValues, handle, list(wanted))
        if not found:
            return [None] * len(wanted)
        members = {
            nvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
            nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        }
        return [
            int(getattr(item.value, members[item.valueType]))
            if item.nvmlReturn == nvml.NVML_SUCCESS and item.valueType in members
            else None
            for item in found
        ]

    @property
    def driver_version(self) -> str | None:
        """The driver version: ``580.95.05``."""
        return self.ask(self.library.nvmlSystemGetDriverVersion)

    @property
    def cuda_version(self) -> str | None:
        """The newest CUDA version that the driver supports: ``13.0``."""
        number = self.ask(self.library.nvmlSystemGetCudaDriverVersion)
        return f"{number // 1000}.{number % 1000 // 10}" if number else None

    def count(self) -> int:
        """Number of GPUs, the lost ones included."""
        return self.ask(self.library.nvmlDeviceGetCount) or 0

    def devices(self) -> list[Device]:
        """All GPUs in their current state; an unreadable GPU has the reason in ``problem``."""
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
            self._cards[index] = NvmlCard(self, index)
        return self._cards[index]

    def power_range(self, index: int) -> tuple[float, float] | None:
        """The least and greatest power limit that a GPU accepts, in watts; None if it has no limit to set."""
        found = self._ask_card(index, self.library.nvmlDeviceGetPowerManagementLimitConstraints)
        return None if found is None else (found[0] / 1000, found[1] / 1000)

    def processes(self, index: int) -> list[GpuProcess]:
        """The processes that use memory of a GPU, most first."""
        return self.card(index).processes()

    def compute_capability(self, index: int) -> tuple[int, int] | None:
        """The compute capability: ``(8, 9)`` for an RTX 4090."""
        found = self._ask_card(index, self.library.nvmlDeviceGetCudaComputeCapability)
        return None if found is None else (int(found[0]), int(found[1]))

    def _ask_card(self, index: int, function: Callable[[Any], T]) -> T | None:
        """A value of a card; None if the card or the driver does not have it."""
        handle, _ = self.handle(index)
        return None if handle is None else self.ask(function, handle)

    def _identity(self, index: int) -> Identity:
        nvml, ask = self.library, self.ask
        handle, _ = self.handle(index)
        if handle is None or not (uuid := self._uuid(handle)):
            # A lost card keeps its name.
            return self._identities.get(index, Identity(index))
        if (known := self._identities.get(index)) is not None and known.uuid == uuid and not known.instances:
            return known
        cores = ask(nvml.nvmlDeviceGetNumGpuCores, handle) or 0
        clock = ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM) or 0
        self._identities[index] = Identity(index, uuid, tuple(self._instances(handle)), cores * clock)
        return self._identities[index]

    def _instances(self, handle: Any) -> Iterator[str]:
        """The UUIDs of a GPU's MIG instances; none if it is not divided."""
        nvml, ask = self.library, self.ask
        mode = ask(nvml.nvmlDeviceGetMigMode, handle)
        if not mode or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        for place in range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            # Slots may be empty.
            instance = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            if instance is not None and (uuid := self._uuid(instance)):
                yield uuid

    def _uuid(self, handle: Any) -> str:
        return one_line(self.ask(self.library.nvmlDeviceGetUUID, handle) or "", 120)


#: Seconds between two attempts to open a driver that was lost: opening one takes seconds where no other program has it
#: open.
REOPEN_SECONDS = 10.0
#: Newest Xid errors of a card that are kept, and events that are read at once.
MOST_XIDS, _MOST_EVENTS = 8, 64


class XidWatch:
    """Watch for Xid errors of all cards. A card or a driver without such events reports none.

    Args:
        nvml: The opened library.
        seen: The newest errors by the card's index, to be added to.
    """

    def __init__(self, nvml: Nvml, seen: dict[int, deque[Xid]]) -> None:
        self._ask, self._nvml, self._seen = nvml.ask, nvml.library, seen
        self._events: Any = nvml.ask(self._nvml.nvmlEventSetCreate)
        for index in range(nvml.count() if self._events is not None else 0):
            handle, _ = nvml.handle(index)
            if handle is not None:
                kind = self._nvml.nvmlEventTypeXidCriticalError
                nvml.ask(self._nvml.nvmlDeviceRegisterEvents, handle, kind, self._events)

    def poll(self) -> None:
        """Take the events since the last call; never waits."""
        for _ in range(_MOST_EVENTS if self._events is not None else 0):
            event = self._ask(self._nvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:
                return
            index = self._ask(self._nvml.nvmlDeviceGetIndex, event.device)
            if index is not None and event.eventType == self._nvml.nvmlEventTypeXidCriticalError:
                self._seen.setdefault(index, deque(maxlen=MOST_XIDS)).append(Xid(int(event.eventData), time.time()))

    def close(self) -> None:
        """Free the event set."""
        if self._events is not None:
            self._ask(self._nvml.nvmlEventSetFree, self._events)


class NvmlSource:
    """The cards that CUDA sees, in its order.

    If none of them can be read any more, the library is reopened every few seconds, to find a driver that was loaded
    again or a card that is back. Until then each card is listed with the reason.
    """

    def __init__(self) -> None:
        self._nvml: Nvml | None = None
        self._watch: XidWatch | None = None
        self._xids: dict[int, deque[Xid]] = {}
        self._known: dict[str, Device] = {}
        self._open_again: float | None = 0.0
        self._reason = ""

    @property
    def reason(self) -> str:
        """The reason why there are no cards, as a sentence; empty if there are some."""
        return self._reason

    def read(self, only: str | None = None) -> list[Device]:
        """The cards in their current state; ``only`` is the UUID of one."""
        nvml = self._nvml or self._open()
        if nvml is None:
            return self._lost(only)
        if self._watch is not None:
            self._watch.poll()
        visible = visible_cards(nvml.identities(), os.environ)
        devices = [self._read(nvml, device) for device in visible if only in (None, device.uuid)]
        # No card has this UUID any more: all are read, so that the intended one is among them.
        devices = devices or [self._read(nvml, device) for device in visible]
        self._known |= {device.uuid or str(device.index): device for device in devices}
        if self._known and all(device.problem for device in devices):
            self._close("" if devices else "The NVIDIA driver lists no cards any more.")
        return devices or self._lost(only)

    def _read(self, nvml: Nvml, visible: Visible) -> Device:
        device = nvml.device(visible)
        xids = list(self._xids.get(visible.index, ()))
        if device.problem:
            return replace(device, uuid=device.uuid or visible.uuid, xid=xids)
        return replace(nvml.card(visible.index).read_slow(device), xid=xids)

    def _lost(self, only: str | None) -> list[Device]:
        """The cards seen before, each with the reason why it cannot be read."""
        clause = self._reason.rstrip(".")
        clause = clause[:1].lower() + clause[1:] if clause.startswith("The ") else clause
        chosen = [device for device in self._known.values() if only in (None, device.uuid)]
        return [
            Device(
                index=device.index,
                kind=device.kind,
                name=device.name,
                uuid=device.uuid,
                problem=clause or device.problem,
                xid=device.xid,
            )
            for device in chosen or self._known.values()
        ]

    def _open(self) -> Nvml | None:
        """Open the library, unless that just failed, or there is no driver on this machine."""
        if self._open_again is None or time.monotonic() < self._open_again:
            return None
        try:
            self._nvml = Nvml()
        except NvmlUnavailableError as error:
            self._reason = error.reason
            self._open_again = None if error.absent and not self._known else time.monotonic() + REOPEN_SECONDS
            return None
        self._reason = ""
        self._watch = XidWatch(self._nvml, self._xids)
        return self._nvml

    def _close(self, reason: str) -> None:
        """Close the library, to reopen it later; without a reason, the cards keep their own."""
        if self._watch is not None:
            self._watch.close()
        if self._nvml is not None:
            self._nvml.close()
        self._nvml = self._watch = None
        self._reason, self._open_again = reason, time.monotonic() + REOPEN_SECONDS
