"""Thresholds of devices, each a word first and a color second."""

from __future__ import annotations

from core.hardware.snapshot import Device

#: Degrees below the limit from which a device counts as near it.
NEAR_DEGREES = 5.0
#: The limit assumed where a device reports no believable one, in °C.
FALLBACK_LIMIT_C = {"cpu": 95.0}
GPU_LIMIT_C = 83.0
#: Shares of memory in use that are near the limit, and at it.
MEMORY_NEAR, MEMORY_LIMIT = 0.80, 0.95

#: Words of the thresholds, with the theme variable of each.
OK, NEAR, LIMIT = "ok", "near limit", "at limit"
WORD_COLORS = {OK: "ok", NEAR: "near", LIMIT: "limit"}


def temperature_limit(device: Device) -> float:
    """The throttling temperature of a device, °C: its own where that is believable, else a usual one."""
    limit = device.temperature_limit_c
    # Sensors without a limit are known to report 0, 127 or 255.
    if limit is not None and 50 <= limit <= 115:
        return limit
    return FALLBACK_LIMIT_C.get(device.kind, GPU_LIMIT_C)


def temperature_word(device: Device) -> str:
    """``ok``, ``near limit`` or ``at limit``; empty where the device reports no temperature."""
    if device.temperature_c is None:
        return ""
    limit = temperature_limit(device)
    if device.temperature_c >= limit:
        return LIMIT
    return NEAR if device.temperature_c >= limit - NEAR_DEGREES else OK


def memory_word(device: Device) -> str:
    """``ok``, ``near limit`` or ``at limit``; empty where the device reports no memory."""
    if device.memory_used is None or not device.memory_total:
        return ""
    share = device.memory_used / device.memory_total
    if share >= MEMORY_LIMIT:
        return LIMIT
    return NEAR if share >= MEMORY_NEAR else OK
