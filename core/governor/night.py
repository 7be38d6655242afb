"""A run's night: measured, planned, promised, and planned anew when something gets in the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.config.clock import next_time
from core.governor.curve import Curve
from core.governor.limits import Limits
from core.governor.pace import Pace
from core.governor.plan import HORIZON, Plan, Span, Wishes, least_energy, plan

#: Share of the time to a deadline that is planned for; what is left is for what nobody foresees.
USED_SHARE = 0.98
#: Seconds between two plans.
PLAN_SECONDS = 30.0
#: A promise is told again when its end or its energy has moved by this share of what is left, or its end by so much.
MOVED_SHARE, MOVED_SECONDS = 0.03, 60.0
#: And, where nothing moves, so often.
TOLD_SECONDS = 600.0
#: The time constant of the duty cycle that heat allows, in seconds.
HEAT_SECONDS = 120.0
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the night will come to, beside what was promised first."""

    cause: str
    """What it was planned for: ``measured``, ``slower``, ``faster``, ``changed`` or ``progress``."""
    finish: float
    """Expected end, Unix seconds."""
    energy_kwh: float | None
    """Expected energy of the whole run, of this start."""
    promised_finish: float
    promised_energy_kwh: float | None
    used_kwh: float | None
    """Energy used so far."""
    duty: float
    quiet_duty: float
    deadline: float | None
    """What was wished for: the end, Unix seconds."""
    energy_limit_kwh: float | None
    least_kwh: float | None = None
    """The least energy that any plan takes, where the wish for energy is missed."""

    @property
    def misses_deadline(self) -> bool:
        """Whether it will be done too late."""
        return self.deadline is not None and self.finish > self.deadline

    @property
    def misses_energy(self) -> bool:
        """Whether it will use too much."""
        limit, expected = self.energy_limit_kwh, self.energy_kwh
        return limit is not None and expected is not None and expected > limit


class Night:
    """Plans one run.

    Args:
        limits: What is wished for.
        now: Unix seconds; the deadline is the next one after it.
        has_power: Whether the device tells its energy.
    """

    def __init__(self, limits: Limits, now: float, *, has_power: bool) -> None:
        self.limits = limits
        self.deadline, self._aim = _deadline(limits, now)
        self.promise: Promise | None = None
        """The newest promise; None before the first minutes are measured."""
        self._pace = Pace(has_power=has_power)
        self._plan: Plan | None = None
        self._planned_at: float | None = None
        self._told_at = now
        self._tokens = self._steps = self._steps_left = 0
        self._step_seconds = self._between_seconds = 0.0
        self._heat_duty = 1.0

    def change(self, limits: Limits, now: float) -> None:
        """Other wishes, from now on: planned for, and promised, anew."""
        self.limits = limits
        self.deadline, self._aim = _deadline(limits, now)
        self.promise, self._planned_at = None, None

    def step_done(
        self, *, tokens: int, seconds: float, duty: float, joules: float | None, between: float, steps_left: int
    ) -> None:
        """Take an optimizer step in.

        Args:
            tokens: Trained in it.
            seconds: It took, rests included.
            duty: The share of them that was worked.
            joules: Used in it; None where the device does not tell.
            between: Seconds between it and the step before, pauses left out.
            steps_left: Optimizer steps to come.
        """
        self._steps += 1
        self._steps_left = steps_left
        if self._steps == 1:
            return  # the first one warms up
        self._tokens += tokens
        self._step_seconds += seconds
        self._between_seconds += between
        self._pace.add(duty, tokens, seconds, joules)

    def duty(self, now: float) -> float:
        """The most duty that is wanted now."""
        if self._steps_left and (trial := self._pace.trial) is not None:
            return trial
        if self._plan is None:
            return 1.0
        quiet = self.limits.quiet is not None and self.limits.quiet.contains(now)
        return self._plan.quiet_duty if quiet and self._plan.quiet_duty else self._plan.duty

    def look(self, now: float, seconds: float, own_duty: float, used_joules: float | None) -> Promise | None:
        """Plan where it is time to.

        Args:
            now: Unix seconds.
            seconds: Since the last call.
            own_duty: The duty cycle that heat and power alone ask for.
            used_joules: Energy used so far; None where the device does not tell.

        Returns:
            A promise that is to be told; None where nothing is new.
        """
        is_quiet = self.limits.quiet is not None and self.limits.quiet.contains(now)
        if not is_quiet:
            weight = min(seconds / HEAT_SECONDS, 1.0)
            self._heat_duty += weight * (own_duty - self._heat_duty)
        # After the last step nothing is left to plan for: the last evaluation is done at the pace of the steps.
        curve = self._pace.curve if self._steps_left else None
        if curve is None or (self._planned_at is not None and now - self._planned_at < PLAN_SECONDS):
            return None
        self._planned_at = now
        return self._replan(curve, now, used_joules)

    def _replan(self, curve: Curve, now: float, used_joules: float | None) -> Promise | None:
        left = self._steps_left * self._tokens / max(self._steps - 1, 1)
        # Evaluations and checkpoints go on as they did so far.
        left *= 1.0 + self._between_seconds / max(self._step_seconds, 1e-9)
        wishes = self._wishes(now, used_joules)
        found = plan(curve, left, wishes)
        cause = self._cause(found, now)
        self._plan = found
        if not cause:
            return None
        least = least_energy(curve, left, wishes) if found.misses_energy else None
        self.promise = self._promise(found, least, cause, used_joules if curve.has_power else None)
        self._told_at = now
        return self.promise

    def _wishes(self, now: float, used_joules: float | None) -> Wishes:
        limits = self.limits
        joules = None
        if limits.energy_kwh is not None and used_joules is not None:
            joules = limits.energy_kwh * _JOULES_PER_KWH - used_joules
        return Wishes(
            tuple(spans(limits, now)),
            deadline=self.deadline,
            aim=self._aim,
            joules=joules,
            power_w=limits.power_w,
            quiet_power_w=limits.quiet_power_w,
            # What rounding and noise take is no heat.
            most_duty=1.0 if self._heat_duty > 0.97 else self._heat_duty,
        )

    def _cause(self, found: Plan, now: float) -> str:
        """Why a plan is to be told; empty where it is as before."""
        before = self.promise
        if before is None:
            return "measured" if self._plan is None else "changed"
        moved = found.finish - before.finish
        if abs(moved) > max(MOVED_SHARE * max(found.finish - now, 0.0), MOVED_SECONDS):
            return "slower" if moved > 0 else "faster"
        if (found.misses_deadline, found.misses_energy) != (before.misses_deadline, before.misses_energy):
            return "changed"
        return "progress" if now - self._told_at >= TOLD_SECONDS else ""

    def _promise(self, found: Plan, least: Plan | None, cause: str, used: float | None) -> Promise:
        whole = None if used is None else (used + found.joules) / _JOULES_PER_KWH
        promise = Promise(
            cause=cause,
            finish=found.finish,
            energy_kwh=whole,
            promised_finish=found.finish,
            promised_energy_kwh=whole,
            used_kwh=None if used is None else used / _JOULES_PER_KWH,
            duty=found.duty,
            quiet_duty=found.quiet_duty,
            deadline=self.deadline,
            energy_limit_kwh=self.limits.energy_kwh,
            least_kwh=None if least is None or used is None else (used + least.joules) / _JOULES_PER_KWH,
        )
        first = self.promise
        if first is None:
            return promise
        return replace(promise, promised_finish=first.promised_finish, promised_energy_kwh=first.promised_energy_kwh)


def _deadline(limits: Limits, now: float) -> tuple[float | None, float | None]:
    """The deadline and the moment before it that is aimed at, in Unix seconds; None where there is none."""
    if limits.deadline is None:
        return None, None
    deadline = next_time(limits.deadline, now)
    return deadline, now + USED_SHARE * (deadline - now)


def spans(limits: Limits, now: float) -> Iterator[Span]:
    """The time from now on, cut where quiet hours begin and end; without them, one stretch."""
    quiet, begin = limits.quiet, now
    if quiet is None:
        yield Span(now, float("inf"), is_quiet=False)
        return
    while begin < now + HORIZON:
        end = quiet.next_edge(begin)
        yield Span(begin, end, quiet.contains(begin))
        begin = end


def impossible(limits: Limits, now: float) -> tuple[str, str] | None:
    """Why a deadline cannot be kept whatever the run costs, and the nearest wish that can; None where it may be."""
    if limits.deadline is None or limits.quiet is None or limits.quiet_power_w is not None:
        return None
    deadline = next_time(limits.deadline, now)
    if any(not span.is_quiet for span in spans(limits, now) if span.begin < deadline):
        return None
    edge = limits.quiet.end
    return (
        "night.deadline comes before the quiet hours end, and training pauses in them: nothing would be trained.",
        f"Set a deadline after {edge // 60:02d}:{edge % 60:02d}, or night.quiet_power_w to train quietly.",
    )
