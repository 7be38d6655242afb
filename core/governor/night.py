"""A run's night: measured, planned, promised, and planned anew when something gets in the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.config.clock import next_time
from core.config.facts import Unkept
from core.governor.course import Course
from core.governor.curve import Curve
from core.governor.limits import Limits
from core.governor.nearest import late, nearest_deadline, nearest_energy, too_much
from core.governor.plan import HORIZON, Plan, Span, Wishes, least_energy, plan, soonest

#: Share of the time to a deadline that is planned for; what is left is for what nobody foresees.
USED_SHARE = 0.98
#: Seconds between two plans.
PLAN_SECONDS = 30.0
#: A promise is told again when its end or its energy has moved by this share of what is left, or its end by so much; a
#: wish that was given up is taken up again when it could be kept with as much room.
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
    """What it was planned for: ``measured``, ``given_up``, ``taken_up``, ``slower``, ``faster``, ``changed`` or
    ``progress``."""
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
    nearest_deadline: float | None = None
    """What takes the place of a deadline that is given up, Unix seconds; None where it stands."""
    nearest_energy_kwh: float | None = None
    """What takes the place of a wish for energy that is given up; None where it stands."""


@dataclass(frozen=True)
class _Found:
    """A plan, and what of the wishes it gives up."""

    plan: Plan
    is_late: bool
    """Whether the deadline is given up."""
    is_too_much: bool
    """Whether the energy is."""


def _find(curve: Curve, left: float, wishes: Wishes, now: float, before: _Found | None) -> _Found:
    """The plan for some wishes; one that was given up is kept again only with room, so that it does not swing.

    Args:
        curve: Speed and power.
        left: Tokens.
        wishes: All that is wished for.
        now: Unix seconds.
        before: What was found last; None for nothing.
    """
    joules, deadline = wishes.joules, wishes.deadline
    if joules is not None and before is not None and before.is_too_much:
        joules *= 1.0 - MOVED_SHARE
    is_late = False
    if deadline is not None:
        room = 0.0
        if before is not None and before.is_late:
            room = max(MOVED_SHARE * (deadline - now), MOVED_SECONDS)
        is_late = soonest(curve, left, wishes).finish > deadline - room
    asked = replace(wishes, joules=joules)
    found = plan(curve, left, replace(asked, deadline=None, aim=None, is_hurried=True) if is_late else asked)
    return _Found(replace(found, misses_deadline=is_late), is_late, found.misses_energy)


class Night:
    """Plans one run.

    Args:
        limits: What is wished for.
        now: Unix seconds; the deadline is the next one after it.
        course: What the run has done so far, and is told from then on.
        has_power: Whether the device tells its energy.
    """

    def __init__(self, limits: Limits, now: float, course: Course, *, has_power: bool) -> None:
        self.limits = limits
        self.deadline, self._aim = _deadline(limits, now)
        self.promise: Promise | None = None
        """The newest promise; None before the first minutes are measured."""
        self._course = course
        course.pace.begin_trials(has_power=has_power)
        self._found: _Found | None = None
        self._nearest_deadline: float | None = None
        self._nearest_kwh: float | None = None
        self._planned_at: float | None = None
        self._told_at = now
        self._heat_duty = 1.0

    def change(self, limits: Limits, now: float) -> None:
        """Other wishes, from now on: planned for, and promised, anew."""
        before, self.limits = self.limits, limits
        self.deadline, self._aim = _deadline(limits, now)
        self.promise, self._planned_at = None, None
        if self._found is not None:
            # What is wished for anew is no wish that was given up.
            self._found = replace(
                self._found,
                is_late=self._found.is_late and limits.deadline == before.deadline,
                is_too_much=self._found.is_too_much and limits.energy_kwh == before.energy_kwh,
            )

    def duty(self, now: float) -> float:
        """The most duty that is wanted now."""
        if (trial := self._course.trial) is not None:
            return trial
        if self._found is None:
            return 1.0
        quiet, chosen = self.limits.quiet is not None and self.limits.quiet.contains(now), self._found.plan
        return chosen.quiet_duty if quiet and chosen.quiet_duty else chosen.duty

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
        curve = self._course.curve
        if curve is None or (self._planned_at is not None and now - self._planned_at < PLAN_SECONDS):
            return None
        self._planned_at = now
        return self._replan(curve, now, used_joules)

    @property
    def most_duty(self) -> float:
        """The largest duty cycle that heat has allowed of late; what rounding and noise take is no heat."""
        return 1.0 if self._heat_duty > 0.97 else self._heat_duty

    def gives_up(self, option: str) -> bool:
        """Whether a wish is given up by now, ``night.deadline`` or ``night.energy_kwh``."""
        found = self._found
        return found is not None and (found.is_late if option == "night.deadline" else found.is_too_much)

    def _replan(self, curve: Curve, now: float, used_joules: float | None) -> Promise | None:
        left, before = self._course.tokens_left, self._found
        wishes = replace(_wishes(self.limits, now, used_joules, self.most_duty), deadline=self.deadline, aim=self._aim)
        found = _find(curve, left, wishes, now, before)
        # Without a meter an energy is nothing that is planned for.
        used = used_joules if curve.has_power else None
        whole = None if used is None else (used + found.plan.joules) / _JOULES_PER_KWH
        moved = self._move_nearest(found, now, whole)
        cause = self._cause(found, before, now) or moved
        self._found = found
        if not cause:
            return None
        least = least_energy(curve, left, wishes) if found.is_too_much else None
        self.promise = self._promise(found.plan, least, cause, used, whole)
        self._told_at = now
        return self.promise

    def _move_nearest(self, found: _Found, now: float, whole_kwh: float | None) -> str:
        """Find what takes the place of wishes that are given up: it stays until it is missed as well, or something much
        nearer can be met. Returns the cause to tell that by; empty where nothing has moved."""
        before = self._nearest_deadline, self._nearest_kwh
        finish = found.plan.finish
        if not found.is_late:
            self._nearest_deadline = None
        elif (was := self._nearest_deadline) is None or not was - _too_far(finish, now) <= finish <= was:
            self._nearest_deadline = nearest_deadline(finish, now)
        if not found.is_too_much or whole_kwh is None:
            self._nearest_kwh = None
        elif (kwh := self._nearest_kwh) is None or not (1.0 - 3 * MOVED_SHARE) * kwh <= whole_kwh <= kwh:
            self._nearest_kwh = nearest_energy(whole_kwh)
        after = self._nearest_deadline, self._nearest_kwh
        if before == after:
            return ""
        pairs = zip(before, after, strict=True)
        return "slower" if any(old is not None and new is not None and new > old for old, new in pairs) else "faster"

    def _cause(self, found: _Found, last: _Found | None, now: float) -> str:
        """Why a plan is to be told; empty where it is as before."""
        before = self.promise
        was = (last.is_late, last.is_too_much) if last is not None else (False, False)
        if (found.is_late and not was[0]) or (found.is_too_much and not was[1]):
            return "given_up"
        if (found.is_late, found.is_too_much) != was and before is not None:
            return "taken_up"
        if before is None:
            return "measured" if last is None else "changed"
        moved = found.plan.finish - before.finish
        if abs(moved) > max(MOVED_SHARE * max(found.plan.finish - now, 0.0), MOVED_SECONDS):
            return "slower" if moved > 0 else "faster"
        return "progress" if now - self._told_at >= TOLD_SECONDS else ""

    def _promise(self, found: Plan, least: Plan | None, cause: str, used: float | None, whole: float | None) -> Promise:
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
            nearest_deadline=self._nearest_deadline,
            nearest_energy_kwh=self._nearest_kwh,
        )
        first = self.promise
        if first is None:
            return promise
        return replace(promise, promised_finish=first.promised_finish, promised_energy_kwh=first.promised_energy_kwh)


def unmet(
    limits: Limits, course: Course, now: float, used_joules: float | None, most_duty: float = 1.0
) -> Iterator[Unkept]:
    """The wishes that a run cannot meet, by what it has done so far, each with the nearest that it can; none before its
    speed is known. What is known of its speed alone says nothing of the least energy.

    Args:
        limits: The wishes, as if they were made now.
        course: Of the run.
        now: Unix seconds.
        used_joules: Energy used so far; None where the device does not tell.
        most_duty: The largest duty cycle that heat allows.
    """
    curve, left = course.known, course.tokens_left
    if curve is None or not limits.wants_plan:
        return
    wishes = _wishes(limits, now, used_joules, most_duty)
    if wishes.deadline is not None and (first := soonest(curve, left, wishes)).finish > wishes.deadline:
        how = "at full speed" if most_duty >= 1.0 else "as fast as the limits allow"
        yield late(wishes.deadline, first.finish, now, how)
        wishes = replace(wishes, deadline=None, aim=None)
    limit, used = limits.energy_kwh, used_joules
    if limit is None or used is None:
        return
    if curve.has_power:
        found = plan(curve, left, wishes)
        if found.misses_energy:
            how = "at the least" if wishes.deadline is None else "to be done in time"
            yield too_much(limit, (used + found.joules) / _JOULES_PER_KWH, how)
    elif used > limit * _JOULES_PER_KWH:
        yield too_much(limit, used / _JOULES_PER_KWH, "already")


def _wishes(limits: Limits, now: float, used_joules: float | None, most_duty: float) -> Wishes:
    joules = None
    if limits.energy_kwh is not None and used_joules is not None:
        joules = limits.energy_kwh * _JOULES_PER_KWH - used_joules
    deadline, aim = _deadline(limits, now)
    return Wishes(
        tuple(spans(limits, now)),
        deadline=deadline,
        aim=aim,
        joules=joules,
        power_w=limits.power_w,
        quiet_power_w=limits.quiet_power_w,
        most_duty=most_duty,
    )


def _too_far(finish: float, now: float) -> float:
    """How far the nearest time may be from an end, in seconds, before another one is the nearest."""
    return 2 * (nearest_deadline(finish, now) - finish) if finish != float("inf") else 0.0


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
