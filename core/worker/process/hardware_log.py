"""Hardware in a run's record: samples of the devices, and notices of problems."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.hardware.sampler import Sampler
from core.hardware.snapshot import Device, Host, explain_xid
from core.runs.record.events import HardwareEvent

#: Seconds between two samples while nothing changes, and while the meters move. A card warms by a degree in seconds and
#: its fans take minutes: 10 s show every turn of the curve, and make half a megabyte of record per hour.
STEADY_SECONDS, MOVING_SECONDS = 10.0, 5.0
#: Minimum change that counts as moving: degrees, share of memory, share of the power limit, points of utilization.
_DEGREES, _MEMORY_SHARE, _POWER_SHARE, _POINTS = 2.0, 0.01, 0.1, 20.0
#: Change of host memory, as a share, that is recorded at once: if the kernel kills a run for lack of memory, the last
#: record is the evidence.
_HOST_SHARE = 0.02
#: Seconds without an answer of a driver before it is reported.
SILENT_SECONDS = 15.0
#: Seconds between two notices of the same Xid of a card: a failing program produces hundreds.
XID_SECONDS = 60.0

Notice = Callable[[str, str, str, str], None]


@dataclass
class HardwareLog:
    """Samples of the devices of one run, and notices about them, each once: an error, a card lost or back, a silent
    driver.

    Args:
        sampler: The sampler of the devices.
        event: Writes an event.
        notice: Writes a notice: ``notice(level, code, message, hint)``.
        clock: Monotonic clock in seconds.
    """

    sampler: Sampler
    event: Callable[[HardwareEvent], None]
    notice: Notice
    clock: Callable[[], float] = time.monotonic
    _recorded: list[Device] = field(default_factory=list, init=False)
    _host: Host | None = field(default=None, init=False)
    _moment: float | None = field(default=None, init=False)
    _lost: set[tuple[str, int]] = field(default_factory=set, init=False)
    _silent: set[tuple[str, int]] = field(default_factory=set, init=False)
    _told: dict[tuple[int, int], float] = field(default_factory=dict, init=False)

    def tick(self) -> None:
        """Check the newest reading: report news, and record it if due."""
        devices = self.sampler.latest()
        for device in devices:
            self._tell_xids(device)
            self._tell_loss(device)
            self._tell_silence(device)
        since = None if self._moment is None else self.clock() - self._moment
        host = self.sampler.host()
        if host is not None and (_has_filled(self._host, host) or is_due(self._recorded, devices, since)):
            self._record(devices)

    def close(self) -> None:
        """Record the last reading, so that the energy covers the whole run."""
        if self.sampler.host() is not None:
            self._record(self.sampler.latest())

    def _record(self, devices: list[Device]) -> None:
        host = self.sampler.host()
        self._recorded, self._host, self._moment = devices, host, self.clock()
        self.event(
            HardwareEvent(
                devices=[device.to_dict() for device in devices],
                energy_wh=self.sampler.energy_wh,
                host_memory_used=host.ram_used if host else None,
                host_memory_total=host.ram_total if host else None,
                host=host.to_dict() if host else None,
            )
        )

    def _tell_xids(self, device: Device) -> None:
        for xid in device.xid:
            key = device.index, xid.code
            before = self._told.get(key)
            if before is not None and xid.t - before < XID_SECONDS:
                continue
            self._told[key] = xid.t
            meaning = explain_xid(xid.code)
            message = f"GPU {device.index} reports Xid {xid.code}: {meaning.words}."
            self.notice(meaning.level, f"xid_{xid.code}", message, meaning.hint)

    def _tell_loss(self, device: Device) -> None:
        key, name = (device.kind, device.index), f"GPU {device.index}, {device.name},"
        if device.problem and key not in self._lost:
            self._lost.add(key)
            hint = "The meters stand still until it can be; training goes on as long as CUDA does."
            self.notice("warning", "gpu_lost", f"{name} cannot be read: {device.problem}.", hint)
        elif not device.problem and key in self._lost:
            self._lost.discard(key)
            self.notice("info", "gpu_back", f"{name} can be read again.", "")

    def _tell_silence(self, device: Device) -> None:
        key, age = (device.kind, device.index), device.age_s or 0.0
        if age >= SILENT_SECONDS and key not in self._silent:
            self._silent.add(key)
            message = f"The driver of {device.name} has not answered for {age:.0f} s; the meters show its last values."
            self.notice("warning", "driver_silent", message, "If it stays so, look for 'Xid' in 'sudo dmesg'.")
        elif device.age_s is None and key in self._silent:
            self._silent.discard(key)
            self.notice("info", "driver_answers", f"The driver of {device.name} answers again.", "")


def is_due(recorded: Sequence[Device], devices: Sequence[Device], since: float | None) -> bool:
    """True if a reading should be recorded.

    Args:
        recorded: The devices as last recorded.
        devices: The devices now.
        since: Seconds since the last record; None if there is none.
    """
    if since is None or since >= STEADY_SECONDS or len(recorded) != len(devices):
        return True
    pairs = list(zip(recorded, devices, strict=True))
    if any(_state(before) != _state(after) for before, after in pairs):
        return True
    return since >= MOVING_SECONDS and any(_has_moved(before, after) for before, after in pairs)


def _has_filled(before: Host | None, after: Host) -> bool:
    """True if host memory differs from the last record."""
    least = (after.ram_total or 0) * _HOST_SHARE
    return before is not None and least > 0 and _apart(before.ram_used, after.ram_used, least)


def _state(device: Device) -> tuple[object, ...]:
    """Values whose change is recorded at once."""
    return device.uuid, device.problem, device.age_s is None, len(device.xid), device.power_limit_w


def _has_moved(before: Device, after: Device) -> bool:
    memory, power = (after.memory_total or 1) * _MEMORY_SHARE, (after.power_limit_w or 100.0) * _POWER_SHARE
    return (
        _apart(before.temperature_c, after.temperature_c, _DEGREES)
        or _apart(before.memory_temperature_c, after.memory_temperature_c, _DEGREES)
        or _apart(before.memory_used, after.memory_used, memory)
        or _apart(before.power_w, after.power_w, power)
        or _apart(before.utilization, after.utilization, _POINTS)
        or before.throttle_reasons != after.throttle_reasons
    )


def _apart(before: float | None, after: float | None, least: float) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(after - before) >= least
