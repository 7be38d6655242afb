"""The planner: the duty cycles, by day and in quiet hours, that use the least energy and are done in time.

Every pair of duty cycles on a grid of hundredths is walked through the hours to come; there are few, and nothing is
assumed of the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.governor.control import FLOOR
from core.governor.curve import Curve

#: Share of the time to a deadline that is planned for; what is left is for what nobody foresees.
USED_SHARE = 0.98
#: Step of the grid of duty cycles.
STEP = 0.02
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
    joules: float | None = None
    """Energy that is left."""
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
    """The cheapest plan that keeps the wishes; where none does, the nearest: in time with the least energy, or as soon
    as possible.

    Args:
        curve: Speed and power by the duty cycle.
        tokens: What is left to train, in tokens.
        wishes: What is to be kept.
    """
    now = wishes.spans[0].begin
    day = _grid(min(wishes.most_duty, _within(curve, wishes.power_w)))
    quiet = [0.0]
    if any(span.is_quiet for span in wishes.spans) and wishes.quiet_power_w is not None:
        most = min(wishes.most_duty, _within(curve, wishes.quiet_power_w))
        quiet = _grid(most) if most >= FLOOR else quiet
    found = [_walk(curve, tokens, wishes.spans, duty, still) for duty in day for still in quiet]
    if wishes.deadline is None:
        in_time = found
    else:
        usable = now + USED_SHARE * (wishes.deadline - now)
        in_time = [item for item in found if item.finish <= usable]
        in_time = in_time or [item for item in found if item.finish <= wishes.deadline]
    if not in_time:
        soonest = min(found, key=lambda item: (item.finish, item.joules))
        return _judged(soonest, wishes, misses_deadline=True)
    if not curve.has_power:
        return _judged(min(in_time, key=lambda item: item.finish), wishes)
    return _judged(min(in_time, key=lambda item: (item.joules, item.finish)), wishes)


def least_energy(curve: Curve, tokens: float, wishes: Wishes) -> Plan:
    """The plan that uses the least energy, whenever it is done."""
    return plan(curve, tokens, _without_deadline(wishes))


def _without_deadline(wishes: Wishes) -> Wishes:
    return Wishes(wishes.spans, None, None, wishes.power_w, wishes.quiet_power_w, wishes.most_duty)


def _judged(item: Plan, wishes: Wishes, *, misses_deadline: bool = False) -> Plan:
    misses_energy = wishes.joules is not None and item.joules > wishes.joules
    return Plan(item.duty, item.quiet_duty, item.finish, item.joules, misses_deadline, misses_energy)


def _within(curve: Curve, watts: float | None) -> float:
    return 1.0 if watts is None else curve.most_duty(watts, FLOOR)


def _grid(most: float) -> list[float]:
    """Duty cycles from the floor to the most, the most among them."""
    most = max(most, FLOOR)
    count = int((most - FLOOR) / STEP + 1e-9)
    return [*(round(FLOOR + place * STEP, 4) for place in range(count + 1)), most]


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
