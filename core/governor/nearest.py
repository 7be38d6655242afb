"""Wishes that cannot be met: what is said of each, and the nearest that can be met instead."""

from __future__ import annotations

import math
import time

from core.config.clock import next_time
from core.config.facts import Unkept
from core.governor.figures import day_time, energy
from core.units import format_moment

#: Room that a wish has to what is expected, as a share of what is left, so that it is not refused in its turn; and the
#: least of it for a time, in seconds.
ROOM_SHARE, ROOM_SECONDS = 0.02, 60.0
#: A nearest time is a multiple of this many seconds.
ROUND_SECONDS = 300.0
_DAY = 86_400.0


def nearest_deadline(finish: float, now: float) -> float:
    """The next round time that a run can be done by, in Unix seconds.

    Args:
        finish: Its expected end; infinite where it never ends.
        now: Unix seconds.
    """
    if not math.isfinite(finish):
        return finish
    with_room = finish + max(ROOM_SHARE * (finish - now), ROOM_SECONDS)
    # Time zones are whole quarters of an hour, so the local clock is as round.
    return math.ceil(with_room / ROUND_SECONDS) * ROUND_SECONDS


def nearest_energy(kwh: float) -> float:
    """The next round energy that a run can do with, in kWh: with two digits after the point, from 10 kWh on none."""
    with_room = (1.0 + ROOM_SHARE) * kwh
    return float(math.ceil(with_room) if with_room >= 10 else math.ceil(with_room * 100) / 100)


def late(deadline: float, finish: float, now: float, how: str, fewer: str = "") -> Unkept:
    """A deadline that cannot be met.

    Args:
        deadline: Unix seconds.
        finish: The soonest end, in Unix seconds.
        now: When the run starts, or the present of one that is on; the nearest deadline is the next after it.
        how: At which speed that is, as a clause: ``at full speed``.
        fewer: What else would do, as the end of a list: ``or fewer steps``.
    """
    sentence = f"{day_time(deadline)} cannot be met: {how} it ends at {day_time(finish)}."
    nearest = nearest_deadline(finish, now)
    other = f", {fewer}" if fewer else ""
    if nearest - now > _DAY or nearest > next_time(_minute(nearest), now):
        # A deadline is a time of day, and means the next one.
        return Unkept("night.deadline", sentence, f"No time within a day can be met: take the deadline away{other}.")
    return Unkept("night.deadline", sentence, f"Set {format_moment(nearest, '%H:%M')} or later{other}.")


def too_much(limit: float, kwh: float, how: str, fewer: str = "") -> Unkept:
    """An energy that does not do.

    Args:
        limit: What was wished for, in kWh.
        kwh: The least that it takes.
        how: What that holds for, as a clause: ``at the least``.
        fewer: As for :func:`late`.
    """
    sentence = f"{energy(limit)} cannot be met: it takes {energy(kwh)} {how}."
    other = f", {fewer}" if fewer else ""
    return Unkept("night.energy_kwh", sentence, f"Set {energy(nearest_energy(kwh))} or more{other}.")


def _minute(moment: float) -> int:
    local = time.localtime(moment)
    return local.tm_hour * 60 + local.tm_min
