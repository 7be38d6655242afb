"""Thresholds of device readings, and meters that are repainted only for significant changes.

A temperature that flickers between two degrees, or a load that changes by a few percent, is no news, and over SSH each
repaint is a packet. Readings that somebody would act on are shown at once: a card that gets warmer, memory that fills
up, a limit that is reached, a device that is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.hardware.snapshot import Device, Host

#: Degrees below the limit from which a device counts as near it.
NEAR_DEGREES = 5.0
#: Limits assumed for devices that report none or an implausible one, in °C.
FALLBACK_LIMIT_C = {"cpu": 95.0}
GPU_LIMIT_C = 83.0
#: Percentages of memory in use that are near the limit, and at it.
MEMORY_NEAR, MEMORY_LIMIT = 80, 95

#: Words for the thresholds, each with its theme variable, its short form and its glyph.
OK, NEAR, LIMIT = "ok", "! near limit", "! at limit"
WORD_COLORS = {OK: "ok", NEAR: "near", LIMIT: "limit"}
SHORT_WORDS = {OK: OK, NEAR: "! near", LIMIT: "! limit"}
GLYPHS = {OK: OK, NEAR: "!", LIMIT: "!!"}

#: Seconds from which a reading is stale: it is shown dimmed, with its age.
STALE_SECONDS = 15.0


def stale_words(seconds: float | None) -> str:
    """The age of a stale reading, ``20s old``, in the room of a short word; empty for a fresh one. It changes rarely,
    as each change is written."""
    if seconds is None or not seconds >= STALE_SECONDS:
        return ""
    if seconds < 60:
        return f"{seconds // 5 * 5:.0f}s old"
    return f"{seconds // 60:.0f}m old" if seconds < 3600 else f"{min(seconds // 3600, 99):.0f}h old"


def temperature_limit(device: Device) -> float:
    """The throttling temperature of a device in °C: the reported one if plausible, else a typical one."""
    limit = device.temperature_limit_c
    # Sensors without a limit report 0, 127 or 255.
    if limit is not None and 50 <= limit <= 115:
        return limit
    return FALLBACK_LIMIT_C.get(device.kind, GPU_LIMIT_C)


def temperature_word(device: Device) -> str:
    """The word for a device's temperature; empty if it reports none."""
    limit = temperature_limit(device)
    return _word(device.temperature_c, limit - NEAR_DEGREES, limit)


def memory_temperature_word(device: Device) -> str:
    """The word for the temperature of a device's memory; empty if it reports none, or no limit."""
    limit = device.memory_temperature_limit_c
    return "" if limit is None else _word(device.memory_temperature_c, limit - NEAR_DEGREES, limit)


def memory_percent(device: Device) -> int | None:
    """Percentage of a device's memory in use; None if it does not report it."""
    if device.memory_used is None or not device.memory_total:
        return None
    return round(100 * device.memory_used / device.memory_total)


def memory_word(device: Device) -> str:
    """The word for a device's memory in use; empty if it reports none."""
    return _word(memory_percent(device), MEMORY_NEAR, MEMORY_LIMIT)


def worst(words: Iterable[str]) -> str:
    """The word closest to the limit."""
    return max(words, key=list(WORD_COLORS).index)


def _word(value: float | None, near: float, limit: float) -> str:
    """The word for a value; rounded, so that it agrees with the figure that is shown."""
    if value is None:
        return ""
    return LIMIT if round(value) >= round(limit) else NEAR if round(value) >= round(near) else OK


#: Readings for which a small difference must last, 5 to 10 s apart.
LASTING = 3


@dataclass(frozen=True)
class Band:
    """Thresholds of a figure: a difference of ``large`` is shown at once, one of ``small`` if it lasts."""

    large: float
    small: float


#: °C; a CPU's sensor follows every burst of work.
_HEAT, _CPU_HEAT = Band(2.0, 1.0), Band(8.0, 4.0)
#: Bytes of GPU memory, shown in tenths of a gigabyte; share of the machine's memory.
_VRAM, _RAM_SHARE = Band(1e8, 5e7), Band(0.15, 0.03)
#: Percentage points of load; a CPU's load is repainted only if the change lasts.
_LOAD, _CPU_LOAD = Band(20.0, 10.0), Band(1000.0, 20.0)
#: Watts; percentage points of the fastest fan.
_POWER, _FAN = Band(15.0, 5.0), Band(15.0, 5.0)
#: Bytes of swap; shares of the free disk and of the energy so far.
_SWAP, _DISK_SHARE, _ENERGY_SHARE = 1e9, 0.05, 0.02


@dataclass(frozen=True)
class MeterReading:
    """Devices and machine at a moment, and the energy so far in Wh."""

    devices: Sequence[Device] = ()
    host: Host | None = None
    energy_wh: float | None = None


class SteadyMeters:
    """Filter of meter readings: the shown one is replaced only by one that differs enough."""

    def __init__(self) -> None:
        self._shown = MeterReading()
        self._newest = MeterReading()
        self._count = 0

    def catch_up(self) -> MeterReading:
        """Show the newest reading, however little it differs."""
        return self._show(self._newest)

    def follow(self, reading: MeterReading, *, rests: bool, is_watched: bool = True) -> MeterReading:
        """Take the newest reading, and return the reading to show.

        Args:
            reading: The newest reading; may be passed several times.
            rests: Whether nothing trains; otherwise every reading is shown.
            is_watched: Whether somebody may be looking. If not, small differences are not shown, and of a CPU only its
                limits.
        """
        is_new = reading.devices is not self._newest.devices
        self._newest = reading
        if not rests or _is_large(self._shown, reading, is_watched=is_watched):
            return self._show(reading)
        if is_new and is_watched:
            self._count = self._count + 1 if _differs(self._shown.devices, reading.devices) else 0
            if self._count >= LASTING:
                return self._show(reading)
        return self._shown

    def _show(self, reading: MeterReading) -> MeterReading:
        self._shown, self._count = reading, 0
        return reading


def energy_has_moved(before: float | None, after: float | None) -> bool:
    """True if the energy of a paused run has grown enough for a repaint."""
    return before is not after if before is None or after is None else after - before >= _ENERGY_SHARE * before


def _is_large(shown: MeterReading, reading: MeterReading, *, is_watched: bool) -> bool:
    """True if a difference is shown at once."""
    before, after = shown.devices, reading.devices
    if [_facts(device) for device in before] != [_facts(device) for device in after]:
        return True
    if is_watched and energy_has_moved(shown.energy_wh, reading.energy_wh):
        return True
    if is_watched and _host_has_moved(shown.host, reading.host):
        return True
    pairs = zip(before, after, strict=True)
    return any(_moved(old, new, large=True) for old, new in pairs if is_watched or new.kind != "cpu")


def _host_has_moved(before: Host | None, after: Host | None) -> bool:
    """True if the free disk or the used swap has changed enough to act on."""
    if before is None or after is None:
        return before is not after
    disk = max(_DISK_SHARE * (before.disk_free or 0), 1.0)
    return _left(Band(disk, disk), before.disk_free, after.disk_free, large=True) or _left(
        Band(_SWAP, _SWAP), before.swap_used, after.swap_used, large=True
    )


def _differs(before: Sequence[Device], after: Sequence[Device]) -> bool:
    """True if there is a difference that is shown once it lasts."""
    return any(_moved(old, new, large=False) for old, new in zip(before, after, strict=True))


def _facts(device: Device) -> tuple[object, ...]:
    """Facts that are compared exactly: the device, the words of its thresholds, and its processes."""
    return (
        *(device.kind, device.index, device.name, device.problem, device.memory_total, device.power_limit_w),
        *(temperature_word(device), memory_temperature_word(device), memory_word(device), stale_words(device.age_s)),
        *(tuple(device.throttle_reasons), frozenset(item.pid for item in device.processes)),
    )


def _moved(before: Device, after: Device, *, large: bool) -> bool:
    """True if a figure of a device has left its band."""
    is_cpu = after.kind == "cpu"
    share = float(after.memory_total or 1)
    memory = Band(_RAM_SHARE.large * share, _RAM_SHARE.small * share) if is_cpu else _VRAM
    bands = (
        (_CPU_HEAT if is_cpu else _HEAT, before.temperature_c, after.temperature_c),
        (_HEAT, before.memory_temperature_c, after.memory_temperature_c),
        (memory, before.memory_used, after.memory_used),
        (_CPU_LOAD if is_cpu else _LOAD, before.utilization, after.utilization),
        (_POWER, before.power_w, after.power_w),
        (_FAN, before.fan, after.fan),
    )
    return any(_left(band, old, new, large=large) for band, old, new in bands)


def _left(band: Band, before: float | None, after: float | None, *, large: bool) -> bool:
    if before is None or after is None:
        # It is newly reported, or no longer.
        return before is not after
    return abs(after - before) >= (band.large if large else band.small)
