"""Background sampling of the devices, so that a driver that hangs never blocks the meters."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import psutil

from core.hardware.cpu import Cpu
from core.hardware.nvml import Nvml, NvmlUnavailableError
from core.hardware.snapshot import Device
from core.hardware.visible import visible_cards

#: In the place of a UUID: no GPU is read.
CPU_ONLY = "cpu"
#: Seconds that :func:`snapshot` waits for a fresh reading before it returns the last one.
SNAPSHOT_SECONDS = 0.5
#: Longest time between two readings over which power is assumed constant, in seconds.
_LONGEST_GAP = 30.0


@dataclass(frozen=True)
class Reading:
    """All devices at one moment (``time.monotonic``), and the joules counted by each GPU so far."""

    moment: float
    devices: list[Device]
    joules: dict[int, float]


class DeviceReader:
    """A reader of the GPUs that CUDA sees, in its order, else of the CPU. It may hang, so it belongs in a background
    thread.

    ``reason`` explains why there are no GPUs; ``only`` is the UUID of the one GPU to read, or ``cpu`` for none.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.only: str | None = None
        self._cpu = Cpu()
        self._nvml: Nvml | None = None
        try:
            self._nvml = Nvml()
        except NvmlUnavailableError as error:
            self.reason = error.reason

    def read(self) -> Reading:
        """One reading."""
        moment = time.monotonic()
        devices: list[Device] = []
        if self._nvml is not None and self.only != CPU_ONLY:
            visible = visible_cards(self._nvml.identities(), os.environ)
            chosen = [device for device in visible if self.only in (None, device.uuid)]
            devices = [self._nvml.device(device) for device in chosen or visible]
        joules: dict[int, float] = {}
        for device in devices:
            if self._nvml and (counted := self._nvml.energy_joules(device.index)) is not None:
                joules[device.index] = counted
        return Reading(moment, devices or [self._cpu.device()], joules)


class EnergyMeter:
    """Energy over a series of readings: by the cards' counters, or by their power where they have none."""

    def __init__(self) -> None:
        self._before: Reading | None = None
        self._joules: float | None = None

    @property
    def watt_hours(self) -> float | None:
        """Energy so far; None while no device has reported any."""
        return None if self._joules is None else self._joules / 3600

    def add(self, reading: Reading) -> None:
        """Add a reading."""
        before, self._before = self._before, reading
        for device in reading.devices:
            if device.index in reading.joules or device.power_w is not None:
                used = 0.0 if before is None else _joules_between(before, reading, device)
                self._joules = (self._joules or 0.0) + used


def _joules_between(before: Reading, after: Reading, device: Device) -> float:
    if device.index in before.joules and device.index in after.joules:
        # A counter restarts when the driver is loaded again.
        return max(after.joules[device.index] - before.joules[device.index], 0.0)
    earlier = next((item.power_w for item in before.devices if item.index == device.index), None)
    seconds = after.moment - before.moment
    if earlier is None or device.power_w is None or not 0 < seconds <= _LONGEST_GAP:
        return 0.0
    return seconds * (earlier + device.power_w) / 2


class Sampler:
    """A sampler of the devices in a daemon thread of its own, until closed.

    Args:
        interval: Seconds between two readings.
    """

    def __init__(self, interval: float = 1.0) -> None:
        self.interval = interval
        self._reading: Reading | None = None
        self._meter = EnergyMeter()
        self._reason = ""
        self._only: str | None = None
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._fresh = threading.Condition()
        threading.Thread(target=self._run, name="hardware", daemon=True).start()

    @property
    def energy_wh(self) -> float | None:
        """Energy used since the sampler was made, in Wh over all devices; None when none reports any."""
        return self._meter.watt_hours

    @property
    def reason(self) -> str:
        """The reason why there are no GPUs; empty when there are, or when it is not known yet."""
        return self._reason

    def watch(self, only: str) -> None:
        """Read one device from now on: a GPU by its UUID, or ``cpu``."""
        self._only = only

    def latest(self) -> list[Device]:
        """The devices as last read; empty before the first reading. Never waits."""
        reading = self._reading
        return list(reading.devices) if reading else []

    def age(self) -> float | None:
        """Seconds since the last reading, None before the first; far beyond the interval, the driver hangs."""
        reading = self._reading
        return time.monotonic() - reading.moment if reading else None

    def refresh(self, timeout: float) -> list[Device]:
        """Request a reading, and wait at most ``timeout`` seconds for it; the last one if that is not enough."""
        asked = time.monotonic()
        self._wanted.set()
        with self._fresh:
            self._fresh.wait_for(lambda: self._reading is not None and self._reading.moment >= asked, timeout)
        return self.latest()

    def close(self) -> None:
        """End the thread; it is not waited for, since it may hang in the driver."""
        self._closed.set()
        self._wanted.set()

    def _run(self) -> None:
        reader = DeviceReader()
        self._reason = reader.reason
        while not self._closed.is_set():
            self._wanted.clear()
            try:
                reader.only = self._only
                reading = reader.read()
            except (OSError, ValueError, RuntimeError, psutil.Error) as error:
                # A sensor that fails now may answer next time; meanwhile age() shows how old the last reading is.
                self._reason = f"The devices cannot be read: {error}."
            else:
                self._meter.add(reading)
                with self._fresh:
                    self._reading = reading
                    self._fresh.notify_all()
            self._wanted.wait(self.interval)


_shared: Sampler | None = None
_shared_guard = threading.Lock()
#: A sampler that is only read on demand has practically no interval.
_ON_DEMAND = 3600.0


def snapshot(timeout: float = SNAPSHOT_SECONDS) -> list[Device]:
    """The current devices: GPUs where there are any, else the CPU.

    Never raises, and waits at most ``timeout`` seconds: with a driver that hangs, the last reading is returned (empty
    when there has been none).
    """
    global _shared
    with _shared_guard:
        if _shared is None:
            _shared = Sampler(_ON_DEMAND)
        sampler = _shared
    return sampler.refresh(timeout)
