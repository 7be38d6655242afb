"""The planner: the duty cycles, by day and in quiet hours, that use the least energy and finish in time.

Every pair of duty cycles on a grid is simulated through the hours to come, then pairs near the best on a finer grid.
There are few, and nothing is assumed about the curve.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.governor.limits import FLOOR
from core.units import format_fixed, format_moment


@dataclass(frozen=True)
class Point:
    """Measurement at one duty cycle."""

    duty: float
    tokens_per_second: float
    watts: float | None
    """None if the device does not report its power."""


class Curve:
    """Speed and power by duty cycle, interpolated linearly between measurements.

    Args:
        points: At least one.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = tuple(sorted(points, key=lambda point: point.duty))
        self.has_power = all(point.watts is not None for point in self.points)

    def tokens_per_second(self, duty: float) -> float:
        """Speed at a duty cycle; 0 without work."""
        places = [(0.0, 0.0), *((point.duty, point.tokens_per_second) for point in self.points)]
        return max(_straight(places, duty), 0.0)

    def watts(self, duty: float) -> float:
        """Power at a duty cycle; 0 if unknown."""
        if not self.has_power:
            return 0.0
        places = [(point.duty, point.watts or 0.0) for point in self.points]
        # A single point gives no power at rest.
        return max(_straight(places if len(places) > 1 else [(0.0, 0.0), *places], duty), 0.0)

    def most_duty(self, watts: float, floor: float) -> float:
        """The largest duty cycle whose power is within a limit, by hundredths; 0 if there is none from the floor on."""
        if not self.has_power:
            return 1.0
        within = [step / 100 for step in range(math.ceil(floor * 100), 101) if self.watts(step / 100) <= watts]
        return max(within, default=0.0)


def _straight(places: Sequence[tuple[float, float]], at: float) -> float:
    """Linear interpolation, with extrapolation beyond the ends."""
    above = min(max(bisect_left([x for x, _ in places], at), 1), len(places) - 1)
    (x0, y0), (x1, y1) = places[above - 1], places[above]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


#: Unix seconds beyond which no time is shown: the year 9999.
_FAR = 253_370_764_800.0


def day_time(moment: float) -> str:
    """A time in the hours to come: ``06:40``, or ``Sat 06:40`` for a later day. Minutes are rounded up, as an announced
    end must not lie before the true one."""
    if not -_FAR < moment < _FAR:
        return "a day that is far off"
    moment = -(-moment // 60) * 60
    return format_moment(moment, "%H:%M" if moment - time.time() < 20 * 3600 else "%a %H:%M", "--:--")


def energy(kwh: float) -> str:
    """An energy: ``0.82 kWh``."""
    return f"{format_fixed(kwh, 2 if kwh < 10 else 0)} kWh"


#: Steps of the two grids of duty cycles.
STEP, FINE_STEP = 0.04, 0.004
#: Planning horizon for quiet hours, in seconds.
HORIZON = 30 * 86400.0


@dataclass(frozen=True)
class Span:
    """A stretch of time: Unix seconds, and whether it is quiet."""

    begin: float
    end: float
    is_quiet: bool


@dataclass(frozen=True)
class Wishes:
    """Wishes for a plan."""

    spans: Sequence[Span]
    """The time from now on, without gaps; the last one may be as long as it takes."""
    deadline: float | None = None
    """Unix seconds."""
    aim: float | None = None
    """Planned end, with a reserve before the deadline; None for the deadline itself."""
    joules: float | None = None
    """Remaining energy."""
    is_hurried: bool = False
    """True if the soonest end counts, not the cheapest one: no deadline can be kept."""
    power_w: float | None = None
    """Average power outside of quiet hours."""
    quiet_power_w: float | None = None
    """Average power in quiet hours; None for none: training is paused."""
    most_duty: float = 1.0
    """The largest duty cycle that heat allows."""


@dataclass(frozen=True)
class Plan:
    """The duty cycles from now on, and their outcome."""

    duty: float
    quiet_duty: float
    """0 if training pauses in quiet hours."""
    finish: float
    """Unix seconds."""
    joules: float
    """From now on; 0 if power is not known."""
    misses_deadline: bool = False
    misses_energy: bool = False

    @property
    def keeps(self) -> bool:
        """True if it keeps all wishes."""
        return not (self.misses_deadline or self.misses_energy)


def plan(curve: Curve, tokens: float, wishes: Wishes) -> Plan:
    """The cheapest plan that keeps the wishes. If none does, the nearest: in time with the least energy; else, and in a
    hurry, the soonest within the energy, or the soonest of all if none is.

    Args:
        curve: Speed and power by the duty cycle.
        tokens: Remaining work, in tokens.
        wishes: The wishes.
    """
    day = min(wishes.most_duty, _within(curve, wishes.power_w))
    quiet = 0.0
    if wishes.quiet_power_w is not None and any(span.is_quiet for span in wishes.spans):
        quiet = min(wishes.most_duty, _within(curve, wishes.quiet_power_w))
        quiet = quiet if quiet >= FLOOR else 0.0
    coarse = _best(curve, tokens, wishes, _grid(FLOOR, day, STEP), _grid(FLOOR, quiet, STEP) if quiet else [0.0])
    near_day = _grid(coarse.duty - STEP, min(coarse.duty + STEP, day), FINE_STEP)
    near_quiet = [0.0]
    if quiet:
        near_quiet = _grid(coarse.quiet_duty - STEP, min(coarse.quiet_duty + STEP, quiet), FINE_STEP)
    return _best(curve, tokens, wishes, near_day, near_quiet)


def _best(curve: Curve, tokens: float, wishes: Wishes, day: Sequence[float], quiet: Sequence[float]) -> Plan:
    """The best plan of some duty cycles."""
    found = [_walk(curve, tokens, wishes.spans, duty, still) for duty in day for still in quiet]
    soonest = min(found, key=lambda item: (item.finish, item.joules))
    misses_deadline = wishes.deadline is not None and soonest.finish > wishes.deadline
    if misses_deadline or wishes.is_hurried:
        within = [item for item in found if wishes.joules is None or item.joules <= wishes.joules]
        nearest = min(within or found, key=lambda item: (item.finish, item.joules))
        return _judged(nearest, wishes, misses_deadline=misses_deadline)
    aim = wishes.deadline if wishes.aim is None else wishes.aim
    in_time = [item for item in found if aim is None or item.finish <= aim]
    if not in_time or not curve.has_power:
        return _judged(soonest, wishes)
    return _judged(min(in_time, key=lambda item: (item.joules, item.finish)), wishes)


def soonest(curve: Curve, tokens: float, wishes: Wishes) -> Plan:
    """The plan with the soonest end, whatever its energy."""
    return plan(curve, tokens, replace(wishes, deadline=None, aim=None, joules=None, is_hurried=True))


def least_energy(curve: Curve, tokens: float, wishes: Wishes) -> Plan:
    """The plan with the least energy, whatever its end."""
    return plan(curve, tokens, replace(wishes, deadline=None, aim=None, joules=None, is_hurried=False))


def _judged(item: Plan, wishes: Wishes, *, misses_deadline: bool = False) -> Plan:
    misses_energy = wishes.joules is not None and item.joules > wishes.joules
    return Plan(item.duty, item.quiet_duty, item.finish, item.joules, misses_deadline, misses_energy)


def _within(curve: Curve, watts: float | None) -> float:
    return 1.0 if watts is None else curve.most_duty(watts, FLOOR)


def _grid(least: float, most: float, step: float) -> list[float]:
    """Duty cycles from the least to the most, inclusive."""
    least, most = max(least, FLOOR), max(most, FLOOR)
    count = int((most - least) / step + 1e-9)
    return [*(round(least + place * step, 4) for place in range(count + 1)), most]


def _walk(curve: Curve, tokens: float, spans: Sequence[Span], duty: float, quiet_duty: float) -> Plan:
    """End and energy of training the tokens; infinite if nothing is trained."""
    left, joules = tokens, 0.0
    for span in spans:
        used = quiet_duty if span.is_quiet else duty
        speed, watts = curve.tokens_per_second(used) if used else 0.0, curve.watts(used)
        needed = left / speed if speed > 0 else float("inf")
        if needed <= span.end - span.begin:
            return Plan(duty, quiet_duty, span.begin + needed, joules + watts * needed)
        left -= speed * (span.end - span.begin)
        joules += watts * (span.end - span.begin)
    return Plan(duty, quiet_duty, float("inf"), float("inf"))
