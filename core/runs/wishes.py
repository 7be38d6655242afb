"""Wishes for the night that a run cannot meet by its estimate, told before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.config.clock import next_time
from core.config.schema import Config
from core.errors import UserError
from core.governor.limits import Limits
from core.governor.night import late, spans, too_much
from core.governor.plan import Curve, Point, Wishes, soonest
from core.runs.estimate import Estimate, Unknown, tell_assumed

#: Share of the energy of an earlier run that another duty cycle may need at the least: a card that works less leaks
#: less, while it idles longer.
LEAST_SHARE = 0.9
#: The same where a limit of average power may lower the card's own, which makes its clock slower and its voltage lower.
LEAST_SHARE_BY_POWER = 0.7
_FEWER = "or train fewer steps"


@dataclass(frozen=True)
class Unmet:
    """A wish that cannot be met.

    Args:
        option: ``night.deadline`` or ``night.energy_kwh``.
        sentence: Why.
        hint: The nearest that can be met.
        is_measured: Whether an earlier run has shown it; else it is by the memory plan, which may be wrong.
    """

    option: str
    sentence: str
    hint: str
    is_measured: bool

    def __str__(self) -> str:
        return f"{self.sentence} {self.hint}"


def wants_plan(config: Config) -> bool:
    """Whether a configuration has a wish that an estimate may show to be too much."""
    return config.night.deadline is not None or config.night.energy_kwh is not None


def unmet(config: Config, found: Estimate | Unknown | None, begins: float | None) -> Iterator[Unmet]:
    """The wishes that a run cannot meet even at full speed, and with the least energy that it may take.

    Loading comes on top, so that what is told here is certain by the estimate. The energy of the memory plan is the
    most that a run may take, and tells nothing.

    Args:
        config: Configuration of the run.
        found: Its estimate.
        begins: When it starts, in Unix seconds; None where that is not known, so that a deadline cannot be looked at.
    """
    try:
        limits = Limits.of(config)
    except UserError:  # the rules between options tell what is no time of day
        return
    if not isinstance(found, Estimate) or not limits.wants_plan:
        return
    is_measured = found.by == "pace"
    if limits.deadline is not None and begins is not None:
        deadline = next_time(limits.deadline, begins)
        # A second of full work is a token a second: the plan needs no more of a curve.
        wishes = Wishes(tuple(spans(limits, begins)), quiet_power_w=limits.quiet_power_w)
        end = soonest(Curve([Point(1.0, 1.0, None)]), found.full_speed_seconds, wishes).finish
        if end > deadline:
            how = f"at full speed, by the pace of {found.run}," if is_measured else _by_plan(found)
            told = late(deadline, end, begins, how, _FEWER)
            yield Unmet(*told, is_measured)
    if limits.energy_kwh is not None and is_measured and found.watt_hours is not None:
        expected = found.watt_hours / 1000
        share = LEAST_SHARE if limits.power_w is None and limits.quiet_power_w is None else LEAST_SHARE_BY_POWER
        if share * expected > limits.energy_kwh:
            told = too_much(limits.energy_kwh, expected, f"by the pace of {found.run}", _FEWER)
            yield Unmet(*told, is_measured)


def _by_plan(found: Estimate) -> str:
    return f"by the memory plan (an estimate, no run of this kind yet{tell_assumed(found.assumed)})"
