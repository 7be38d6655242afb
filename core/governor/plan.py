"""The planner: the duty cycles, by day and in quiet hours, that use the least energy and are done in time.

Every pair of duty cycles on a grid is walked through the hours to come, and then those near the best, more finely;
there are few, and nothing is assumed of the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.governor.control import FLOOR
from core.governor.curve import Curve

#: Steps of the two grids of duty cycles.
STEP, FINE_STEP = 0.04, 0.004
#: How far ahead quiet hours are looked at, in seconds.
HORIZON = 30 * 86400.0


@dataclass(frozen=True)
class Span:
    """A stretch of time: Unix seconds, and whether it is quiet."""

    begin: float
    end: float
    is_quiet: bool


@dataclass(frozen=True)
class Wishes:
    """What a plan is to keep."""

    spans: Sequence[Span]
    """The time from now on, without gaps; the last one may be as long as it takes."""
    deadline: float | None = None
    """Unix seconds."""
    aim: float | None = None
    """When it is to be done if all goes well, before the deadline; None for the deadline itself."""
    joules: float | None = None
    """Energy that is left."""
    is_hurried: bool = False
    """Whether the soonest end counts, and not the cheapest one: no deadline can be kept."""
    power_w: float | None = None
    """Average power outside of quiet hours."""
    quiet_power_w: float | None = None
    """Average power in quiet hours; None for none: training is paused."""
    most_duty: float = 1.0
    """The largest duty cycle that heat allows."""


@dataclass(frozen=True)
class Plan:
    """The duty cycles from now on, and what comes of them."""

    duty: float
    quiet_duty: float
    """0 where training pauses in quiet hours."""
    finish: float
    """Unix seconds."""
    joules: float
    """From now on; 0 where power is not known."""
    misses_deadline: bool = False
    misses_energy: bool = False

    @property
    def keeps(self) -> bool:
        """Whether it keeps all that is wished for."""
        return not (self.misses_deadline or self.misses_energy)


def plan(curve: Curve, tokens: float, wishes: Wishes) -> Plan:
    """The cheapest plan that keeps the wishes. Where none does, the nearest: in time with the least energy; else, and
    in a hurry, the soonest of those within the energy, or the soonest of all where none is.

    Args:
        curve: Speed and power by the duty cycle.
        tokens: What is left to train, in tokens.
        wishes: What is to be kept.
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
    """The plan that is done first, whatever it uses."""
    return plan(curve, tokens, replace(wishes, deadline=None, aim=None, joules=None, is_hurried=True))


def least_energy(curve: Curve, tokens: float, wishes: Wishes) -> Plan:
    """The plan that uses the least energy, whenever it is done."""
    return plan(curve, tokens, replace(wishes, deadline=None, aim=None, joules=None, is_hurried=False))


def _judged(item: Plan, wishes: Wishes, *, misses_deadline: bool = False) -> Plan:
    misses_energy = wishes.joules is not None and item.joules > wishes.joules
    return Plan(item.duty, item.quiet_duty, item.finish, item.joules, misses_deadline, misses_energy)


def _within(curve: Curve, watts: float | None) -> float:
    return 1.0 if watts is None else curve.most_duty(watts, FLOOR)


def _grid(least: float, most: float, step: float) -> list[float]:
    """Duty cycles from the least to the most, the most among them."""
    least, most = max(least, FLOOR), max(most, FLOOR)
    count = int((most - least) / step + 1e-9)
    return [*(round(least + place * step, 4) for place in range(count + 1)), most]


def _walk(curve: Curve, tokens: float, spans: Sequence[Span], duty: float, quiet_duty: float) -> Plan:
    """When the tokens are trained, and with which energy; never where nothing is trained."""
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
