"""The governor's actions in words."""

from __future__ import annotations

import math
import time

from core.governor.night import Promise
from core.governor.policy import (
    DISK,
    HOST_MEMORY,
    MEMORY_TEMPERATURE,
    PLAN,
    POWER,
    QUIET_HOURS,
    QUIET_POWER,
    TEMPERATURE,
)
from core.text import one_line
from core.units import format_fixed, format_moment, format_number

#: The unit of each cause's value, and how the cause is called.
_UNITS = {
    TEMPERATURE: (" °C", "the device"),
    MEMORY_TEMPERATURE: (" °C", "the memory of the card"),
    POWER: (" W", "power"),
    QUIET_POWER: (" W", "power in quiet hours"),
    HOST_MEMORY: (" %", "the machine's memory"),
    DISK: (" GB", "room on the disk"),
}


def quantity(cause: str, value: float) -> str:
    """A value of a cause with its unit: ``81 °C``, ``280 W``."""
    unit, _ = _UNITS.get(cause, ("", ""))
    if not unit:
        return format_number(value)
    return format_fixed(value, 1 if cause == DISK and value < 100 else 0) + unit


def describe(
    action: str, cause: str, value: float | None = None, limit: float | None = None, duty: float | None = None
) -> str:
    """An action in words: ``slowed to 60 % to hold 80 °C``, ``paused: the device is at 86 °C (limit 83
    °C)``."""
    why = reason(cause, value, limit)
    if action == "slow":
        return _slowed(cause, limit, duty)
    if action == "full":
        return "at full speed again"
    if action == "power_limit":
        if value is None:
            return "the card's own power limit again"
        return f"the card's power limit is {quantity(POWER, value)} now"
    if action == "pause":
        return f"paused: {why}"
    if action == "resume":
        return "goes on: the quiet hours are over" if cause == QUIET_HOURS else f"goes on: {why}"
    if action == "checkpoint":
        return f"writes a checkpoint: {why}"
    if action == "stop":
        return f"stops: {why}"
    return f"{one_line(action, 40)}: {why}"


def stopped_by(cause: str, value: float | None, limit: float | None) -> str:
    """Who stopped a run, for ``stopped by …``: ``the governor, as the device is at 91 °C (limit 80 °C)``."""
    return f"the governor, as {reason(cause, value, limit)}"


def _slowed(cause: str, limit: float | None, duty: float | None) -> str:
    share = f" to {duty:.0%}".replace("%", " %") if duty is not None and 0 <= duty <= 1 else ""
    if cause == PLAN:
        return f"slowed{share} by the plan for the night"
    held = f" to hold {quantity(cause, limit)}" if limit is not None else f" for {one_line(cause, 40)}"
    return f"slowed{share}{held}"


def reason(cause: str, value: float | None, limit: float | None) -> str:
    """The reason of an action: ``the device is at 86 °C (limit 83 °C)``."""
    if cause == QUIET_HOURS:
        return "these are quiet hours"
    _, name = _UNITS.get(cause, ("", one_line(cause, 80)))
    if value is None:
        return name
    bound = "least" if cause == DISK else "limit"
    end = "" if limit is None else f" ({bound} {quantity(cause, limit)})"
    return f"{name} {'is at' if cause in _UNITS else 'is'} {quantity(cause, value)}{end}"


def misses(promise: Promise) -> list[tuple[str, str, str]]:
    """The wishes that cannot be kept, as notices: code, message with the nearest that can, hint."""
    found: list[tuple[str, str, str]] = []
    if promise.deadline is not None and promise.misses_deadline:
        message = f"It cannot be done by {_day_time(promise.deadline)}: {_day_time(promise.finish)} is the soonest."
        found.append(("night_deadline", message, "It goes on as fast as the limits allow."))
    limit, expected = promise.energy_limit_kwh, promise.energy_kwh
    if limit is not None and expected is not None and promise.misses_energy:
        message = f"{_energy(limit)} will not do: it takes {_energy(expected)}"
        least = promise.least_kwh
        if least is not None and least <= limit:
            message += f"; {_energy(least)} would do without the deadline"
        elif least is not None and least < 0.98 * expected:
            message += f", and {_energy(least)} at the least, without the deadline"
        found.append(("night_energy", f"{message}.", "It goes on with as little as the deadline allows."))
    return found


def promised(
    finish: float, energy_kwh: float | None, promised_finish: float, promised_kwh: float | None, used: float | None
) -> str:
    """A promise beside the truth: ``done by 06:40 with 0.82 kWh (promised 06:35, 0.80 kWh), 0.31 kWh so far``."""
    line = f"done by {_day_time(finish)}"
    if energy_kwh is not None:
        line += f" with {_energy(energy_kwh)}"
    first = [] if abs(finish - promised_finish) < 60 else [_day_time(promised_finish)]
    if energy_kwh is not None and promised_kwh is not None and _energy(energy_kwh) != _energy(promised_kwh):
        first.append(_energy(promised_kwh))
    line += f" (promised {', '.join(first)})" if first else ""
    return line + (f", {_energy(used)} so far" if used is not None else "")


def _day_time(moment: float) -> str:
    """A time in the hours to come: ``06:40``, on another day than the next one ``Sat 06:40``; a begun minute counts
    whole, as an end that is told must not lie before the true one."""
    if not math.isfinite(moment):
        return "a day that is far off"
    moment = math.ceil(moment / 60) * 60
    return format_moment(moment, "%H:%M" if moment - time.time() < 20 * 3600 else "%a %H:%M", "--:--")


def _energy(kwh: float) -> str:
    return f"{format_fixed(kwh, 2 if kwh < 10 else 0)} kWh"
