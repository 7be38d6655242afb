"""Background sampling of the devices and of the machine, so that a driver that hangs never blocks the meters."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import psutil

from core.directories import free_bytes
from core.hardware.amd import AmdSource
from core.hardware.card import find_card
from core.hardware.cpu import Cpu, Rapl
from core.hardware.drivers import is_rocm
from core.hardware.nvml import NvmlSource
from core.hardware.snapshot import Device, Host

T = TypeVar("T")


class DeviceSource(Protocol):
    """A source of devices: a driver's library, or files of the system. Its calls may hang, so they belong in a
    :class:`Watched`."""

    @property
    def reason(self) -> str:
        """The reason why it has no devices, as a sentence; empty while it has some, or where none are missed."""

    def read(self, only: str | None = None) -> list[Device]:
        """Its devices in their current state; an unreadable device has the reason in ``problem``.

        Args:
            only: The UUID of the one device to read; None: all.
        """


class Watched(Generic[T]):
    """Newest answer of a call that may hang, made in its own daemon thread: a call into a wedged driver never returns
    and cannot be interrupted.

    Args:
        make: Makes the answer; called once, in the thread.
        name: Name of the thread.
        answered: Called after each answer.
    """

    def __init__(self, make: Callable[[], Callable[[], T]], name: str, answered: Callable[[], None]) -> None:
        self._make, self._name, self._answered = make, name, answered
        self._asked = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.answer: T | None = None
        """The newest answer; None before the first."""
        self.moment: float | None = None
        """Start of its call (``time.monotonic``); None before the first."""
        self.failure = ""
        """The reason why the newest call failed; empty if it succeeded."""
        self.is_pending = False
        """True while a call is running."""

    def ask(self) -> None:
        """Start a call, unless one is running."""
        if self.is_pending or self._closed:
            return
        self.is_pending = True
        self._asked.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; it is not waited for, since it may hang."""
        self._closed = True
        self._asked.set()

    def _run(self) -> None:
        ask: Callable[[], T] | None = None
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._closed:
                return
            moment = time.monotonic()
            try:
                ask = ask or self._make()
                self.answer, self.moment, self.failure = ask(), moment, ""
            except (OSError, ValueError, RuntimeError, psutil.Error) as error:
                # A sensor that fails now may answer next time; until then the last answer stands, with its age.
                self.failure = str(error)
            self.is_pending = False
            self._answered()


class HostReader:
    """A reader of the CPU as a device, and of the machine. Its disk may hang, so it belongs in a
    :class:`core.hardware.sampler.Watched`.

    Args:
        rapl: The processor's energy counters; None: this machine's.
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
            disk_free=free_bytes(),
            cpu_temperature_c=cpu.temperature_c,
            cpu_power_w=cpu.power_w,
        )


#: In the place of a UUID: no GPU is read.
CPU_ONLY = "cpu"
#: Seconds that :func:`snapshot` waits for a fresh reading before it returns the last one.
SNAPSHOT_SECONDS = 0.5
#: Seconds that all sources have to answer; a late source keeps its earlier readings, with their age.
DEADLINE_SECONDS = 1.5
#: A sampler that is only read on demand has practically no interval.
_ON_DEMAND = 3600.0
#: Longest time between two readings over which power is assumed constant, in seconds.
_LONGEST_GAP = 30.0


@dataclass(frozen=True)
class Reading:
    """All devices and the machine at one moment (``time.monotonic``)."""

    moment: float
    devices: list[Device] = field(default_factory=list)
    host: Host | None = None
    read: float | None = None
    """The moment at which the devices were read; None if they have not answered yet."""
    is_complete: bool = True
    """True if the devices have answered in time."""


class GpuReader:
    """A reader of the GPUs of all sources. It may hang, so it belongs in a :class:`Watched`.

    The cards that torch is built for come first: NVIDIA's, or AMD's with a build for ROCm; the others count where there
    are none of these.

    Args:
        sources: The sources; the first with devices counts. None: this machine's.
    """

    def __init__(self, sources: Sequence[DeviceSource] | None = None) -> None:
        if sources is None:
            sources = (AmdSource(), NvmlSource()) if is_rocm() else (NvmlSource(), AmdSource())
        self._sources = sources
        self.only: str | None = None
        """The UUID of the one GPU to read; None: all that CUDA sees."""

    @property
    def reason(self) -> str:
        """The reason why there are no GPUs; empty if there are, or none are missed."""
        return next((source.reason for source in self._sources if source.reason), "")

    def read(self) -> list[Device]:
        """The GPUs in their current state."""
        for source in self._sources:
            if devices := source.read(self.only):
                return devices
        return []


class EnergyMeter:
    """Energy over a series of readings: by the devices' counters, or by their power where they have none."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], tuple[float, Device]] = {}
        self._joules: float | None = None

    @property
    def watt_hours(self) -> float | None:
        """Energy so far; None while no device has reported any."""
        return None if self._joules is None else self._joules / 3600

    def add(self, reading: Reading) -> None:
        """Add a reading; a device that did not answer is left to the next."""
        for device in reading.devices:
            if device.age_s is not None or (device.energy_j is None and device.power_w is None):
                continue
            key = device.kind, device.index
            before = self._before.get(key)
            used = 0.0 if before is None else _joules_between(before[1], device, reading.moment - before[0])
            self._before[key] = reading.moment, device
            self._joules = (self._joules or 0.0) + used


def _joules_between(earlier: Device, later: Device, seconds: float) -> float:
    if earlier.energy_j is not None and later.energy_j is not None:
        # A counter restarts when the driver is loaded again.
        return max(later.energy_j - earlier.energy_j, 0.0)
    if earlier.power_w is None or later.power_w is None or not 0 < seconds <= _LONGEST_GAP:
        return 0.0
    return seconds * (earlier.power_w + later.power_w) / 2


class Sampler:
    """A sampler of the devices and the machine in its own daemon threads, until closed.

    Args:
        interval: Seconds between two readings.
    """

    def __init__(self, interval: float = 1.0) -> None:
        self.interval = interval
        self._reading = Reading(-math.inf)
        self._meter = EnergyMeter()
        self._gpus = GpuReader()
        self._only: str | None = None
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._gpu_thread = Watched(lambda: self._gpus.read, "gpus", self._notify)
        self._host_thread = Watched(lambda: HostReader().read, "host", self._notify)
        threading.Thread(target=self._run, name="hardware", daemon=True).start()

    @property
    def energy_wh(self) -> float | None:
        """Energy used since the sampler was made, in Wh over all devices; None when none reports any."""
        return self._meter.watt_hours

    @property
    def reason(self) -> str:
        """The reason why there are no GPUs, or why devices cannot be read; empty when there are, or when it is not
        known yet."""
        failure = self._gpu_thread.failure or self._host_thread.failure
        return f"The devices cannot be read: {failure}." if failure else self._gpus.reason

    def watch(self, only: str) -> None:
        """Read one device from now on: a GPU by its UUID, or ``cpu``."""
        self._only = only
        self._gpus.only = only

    def latest(self) -> list[Device]:
        """The devices as last read, with their age if they have not answered since; empty before the first reading.
        Never waits."""
        return list(self._reading.devices)

    def host(self) -> Host | None:
        """The machine as last read; None before the first reading. Never waits."""
        return self._reading.host

    def age(self) -> float | None:
        """Seconds since the devices were read, None before the first time; far above the interval if a driver hangs."""
        read = self._reading.read
        return None if read is None else time.monotonic() - read

    def refresh(self, timeout: float) -> list[Device]:
        """Request a reading, and wait at most ``timeout`` seconds for it; the last one if that is not enough."""
        asked = time.monotonic()
        self._wanted.set()

        def is_fresh() -> bool:
            return self._reading.is_complete and self._reading.moment >= asked

        with self._changed:
            self._changed.wait_for(is_fresh, timeout)
        return self.latest()

    def close(self) -> None:
        """End the threads; they are not waited for, since they may hang in the driver."""
        self._closed.set()
        self._wanted.set()
        self._gpu_thread.close()
        self._host_thread.close()
        self._notify()

    def _threads(self) -> list[Watched[list[Device]] | Watched[tuple[Device, Host]]]:
        return [self._host_thread] if self._only == CPU_ONLY else [self._host_thread, self._gpu_thread]

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wanted.clear()
            moment, threads = time.monotonic(), self._threads()
            for thread in threads:
                thread.ask()
            self._await(threads)
            reading = self._compose(moment, threads)
            self._meter.add(reading)
            with self._changed:
                self._reading = reading
                self._changed.notify_all()
            # A late source is looked at again soon, even if the next reading is far off.
            self._wanted.wait(self.interval if reading.is_complete else min(self.interval, DEADLINE_SECONDS))

    def _await(self, threads: Sequence[Watched[list[Device]] | Watched[tuple[Device, Host]]]) -> None:
        """Wait until all have answered, or the time for that is over."""

        def is_over() -> bool:
            return self._closed.is_set() or not any(thread.is_pending for thread in threads)

        with self._changed:
            self._changed.wait_for(is_over, DEADLINE_SECONDS)

    def _compose(
        self, moment: float, threads: Sequence[Watched[list[Device]] | Watched[tuple[Device, Host]]]
    ) -> Reading:
        """The newest answers as one reading; the CPU counts where there are no GPUs."""
        cpu, host = self._host_thread.answer or (None, None)
        gpus = self._gpu_thread.answer if self._gpu_thread in threads else []
        # A driver that has not answered yet may have cards: the CPU is not shown in their place.
        devices = [] if gpus is None else gpus or ([cpu] if cpu is not None else [])
        # A disk that hangs, or a sensor of the machine that fails, makes no card's values old.
        read = self._gpu_thread.moment if gpus or gpus is None else self._host_thread.moment
        is_late = read is None or read < moment
        if is_late and read is not None:
            devices = [replace(device, age_s=round(moment - read, 1)) for device in devices]
        return Reading(moment, devices, host, read, not is_late)


def read_device(wanted: str = "auto", gpu: str | None = None) -> Device | None:
    """The device that a run on this machine would get, as its meters read now; None if unknown.

    Args:
        wanted: ``hardware.device``.
        gpu: ``hardware.gpu``; None: the first that CUDA sees.
    """
    card = find_card(gpu=gpu) if wanted != "cpu" else None
    sampler = Sampler(_ON_DEMAND)
    try:
        if wanted == "cpu":
            sampler.watch(CPU_ONLY)
        elif card is not None and card.uuid:
            sampler.watch(card.uuid)
        devices = sampler.refresh(DEADLINE_SECONDS)
    finally:
        sampler.close()
    device = devices[0] if devices else None
    # If a requested card is missing, nothing trains on the CPU instead.
    is_other = device is not None and device.kind == "cpu" and (wanted not in ("auto", "cpu") or gpu is not None)
    return None if is_other else device


_shared: Sampler | None = None
_shared_guard = threading.Lock()


def snapshot(timeout: float = SNAPSHOT_SECONDS) -> list[Device]:
    """The current devices: GPUs where there are any, else the CPU.

    Never raises, and waits at most ``timeout`` seconds: with a driver that hangs, the last reading is returned with its
    age (empty when there has been none).
    """
    global _shared
    with _shared_guard:
        if _shared is None:
            _shared = Sampler(_ON_DEMAND)
        sampler = _shared
    return sampler.refresh(timeout)
