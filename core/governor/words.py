"""The governor's actions in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from core.governor import policy
from core.governor.plan import day_time, energy
from core.text import one_line
from core.units import format_fixed, format_moment, format_number

if TYPE_CHECKING:
    from core.governor.promise import Promise

#: The unit of each cause's value, and the cause's name.
_UNITS = {
    policy.TEMPERATURE: (" °C", "the device"),
    policy.MEMORY_TEMPERATURE: (" °C", "the memory of the card"),
    policy.POWER: (" W", "power"),
    policy.QUIET_POWER: (" W", "power in quiet hours"),
    policy.HOST_MEMORY: (" %", "the machine's memory"),
    policy.DISK: (" GB", "room on the disk"),
}

_VERBS = {"pause": "paused", "resume": "goes on", "checkpoint": "writes a checkpoint", "stop": "stops"}


def quantity(cause: str, value: float) -> str:
    """A cause's value with its unit: ``81 °C``, ``280 W``."""
    unit, _ = _UNITS.get(cause, ("", ""))
    if not unit:
        return format_number(value)
    return format_fixed(value, 1 if cause == policy.DISK and value < 100 else 0) + unit


def describe(
    action: str, cause: str, value: float | None = None, limit: float | None = None, duty: float | None = None
) -> str:
    """An action in words: ``slowed to 60 % to hold 80 °C``, ``goes on: the device is at 75 °C (limit 80
    °C)``."""
    why = (pause_reason if action == "pause" else _reason)(cause, value, limit)
    if action == "slow":
        return _slowed(cause, limit, duty)
    if action == "full":
        return "at full speed again"
    if action == "power_limit":
        if value is None:
            return "the card's own power limit again"
        return f"the card's power limit is {quantity(policy.POWER, value)} now"
    if action == "resume" and cause == policy.QUIET_HOURS:
        # A value is the end that the hours would have had, a limit the end that they have now.
        why = "the quiet hours are over" if value is None else f"quiet hours were {'changed' if limit else 'lifted'}"
        return f"goes on: {why}"
    return f"{_VERBS.get(action) or one_line(action, 40)}: {why}"


def stopped_by(cause: str, value: float | None, limit: float | None) -> str:
    """The governor as the origin of a stop, for ``stopped by …``: ``the governor, as the device is at 91 °C``."""
    return f"the governor, as {_reason(cause, value, limit)}"


def _slowed(cause: str, limit: float | None, duty: float | None) -> str:
    share = f" to {duty:.0%}".replace("%", " %") if duty is not None and 0 <= duty <= 1 else ""
    if cause == policy.PLAN:
        return f"slowed{share} by the plan for the night"
    held = f" to hold {quantity(cause, limit)}" if limit is not None else f" for {one_line(cause, 40)}"
    return f"slowed{share}{held}"


def pause_reason(cause: str, value: float | None, limit: float | None) -> str:
    """Why a pause, and until when: ``the device is at 86 °C (limit 83 °C), until 78 °C``."""
    until = ""
    if cause == policy.QUIET_POWER:
        until = ", until they end"
    elif limit is not None and cause == policy.DISK:
        until = f", until {quantity(cause, limit * policy.DISK_BACK)}"
    elif limit is not None and cause in (policy.TEMPERATURE, policy.MEMORY_TEMPERATURE):
        until = f", until {quantity(cause, limit - policy.RESUME_BELOW_C)}"
    return _reason(cause, value, limit) + until


def _reason(cause: str, value: float | None, limit: float | None) -> str:
    if cause == policy.QUIET_HOURS:
        # The value is the end of the hours in Unix seconds, which earlier versions did not record.
        return cause if value is None else f"{cause} until {format_moment(value, '%H:%M')}"
    _, name = _UNITS.get(cause, ("", one_line(cause, 80)))
    if value is None:
        return name
    bound = "least" if cause == policy.DISK else "limit"
    end = "" if limit is None else f" ({bound} {quantity(cause, limit)})"
    return f"{name} {'is at' if cause in _UNITS else 'is'} {quantity(cause, value)}{end}"


def news(before: Promise | None, now: Promise) -> list[tuple[str, str, str, str]]:
    """Wishes dropped, or taken up again, since the previous promise: level, code, message and hint of a notice each.

    Args:
        before: The previous promise; None for none.
        now: The new one.
    """
    found: list[tuple[str, str, str, str]] = []
    if (deadline := now.deadline) is not None:
        was = before is not None and before.deadline == deadline and before.nearest_deadline is not None
        if now.nearest_deadline is not None and not was:
            found.append(("warning", "night_deadline", *_late(now, deadline, now.nearest_deadline)))
        elif was and now.nearest_deadline is None:
            message = f"{day_time(deadline)} is the deadline again: it can be met now."
            found.append(("info", "night_deadline_again", message, ""))
    if (limit := now.energy_limit_kwh) is not None:
        was = before is not None and before.energy_limit_kwh == limit and before.nearest_energy_kwh is not None
        if now.nearest_energy_kwh is not None and not was:
            found.append(("warning", "night_energy", *_too_much(now, limit, now.nearest_energy_kwh)))
        elif was and now.nearest_energy_kwh is None:
            found.append(("info", "night_energy_again", f"{energy(limit)} is the wish again: it will do now.", ""))
    return found


def _late(promise: Promise, deadline: float, nearest: float) -> tuple[str, str]:
    """Message and hint for a dropped deadline."""
    with_energy = ""
    if promise.energy_limit_kwh is not None and promise.nearest_energy_kwh is None:
        with_energy = f" with {energy(promise.energy_limit_kwh)}"
    message = f"{day_time(deadline)} cannot be met: it ends at {day_time(promise.finish)} at the soonest{with_energy}."
    if math.isfinite(nearest):
        message += f" {day_time(nearest)} takes its place."
    return message, f"It goes on as fast as the limits allow; {day_time(deadline)} is back as soon as it can be met."


def _too_much(promise: Promise, limit: float, nearest: float) -> tuple[str, str]:
    """Message and hint for a dropped energy budget."""
    message = f"{energy(limit)} cannot be met: it takes {energy(promise.energy_kwh or nearest)}"
    least, is_in_time = promise.least_kwh, promise.deadline is not None and promise.nearest_deadline is None
    if is_in_time and least is not None and least <= limit:
        message += f", and {energy(least)} would do without the deadline"
    elif is_in_time and least is not None and least < 0.98 * (promise.energy_kwh or nearest):
        message += f", and {energy(least)} at the least without the deadline"
    message += f". {energy(nearest)} takes its place."
    how = "with as little as the deadline allows" if is_in_time else "with as little as it can"
    return message, f"It goes on {'as fast as the limits allow' if promise.nearest_deadline is not None else how}."


def in_place(
    deadline: float | None, nearest_deadline: float | None, limit_kwh: float | None, nearest_kwh: float | None
) -> str:
    """Replacements of dropped wishes: ``08:45 in place of 07:00, which cannot be met``; empty if all wishes stand."""
    pairs: list[tuple[str, str]] = []
    if deadline is not None and nearest_deadline is not None:
        pairs.append((day_time(nearest_deadline), day_time(deadline)))
    if limit_kwh is not None and nearest_kwh is not None:
        pairs.append((energy(nearest_kwh), energy(limit_kwh)))
    if not pairs:
        return ""
    new, old = (" and ".join(texts) for texts in zip(*pairs, strict=True))
    return f"{new} in place of {old}, which cannot be met"


def promised(
    finish: float, energy_kwh: float | None, promised_finish: float, promised_kwh: float | None, used: float | None
) -> str:
    """The forecast beside the promise: ``done by 06:40 with 0.82 kWh (promised 06:35, 0.80 kWh), 0.31 kWh so far``."""
    line = f"done by {day_time(finish)}"
    if energy_kwh is not None:
        line += f" with {energy(energy_kwh)}"
    first = [] if abs(finish - promised_finish) < 60 else [day_time(promised_finish)]
    if energy_kwh is not None and promised_kwh is not None and energy(energy_kwh) != energy(promised_kwh):
        first.append(energy(promised_kwh))
    line += f" (promised {', '.join(first)})" if first else ""
    return line + (f", {energy(used)} so far" if used is not None else "")
