"""A run's night: measured, planned, promised, and replanned when conditions change."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

from core.config.clock import next_time
from core.config.facts import Unkept
from core.governor.limits import Limits
from core.governor.plan import HORIZON, Curve, Plan, Point, Span, Wishes, day_time, energy, least_energy, plan, soonest
from core.governor.promise import Promise
from core.units import format_moment

#: Room between a wish and the forecast, as a share of the remaining time or energy, so that an accepted wish is not
#: refused later; and the least room of a time, in seconds.
ROOM_SHARE, ROOM_SECONDS = 0.02, 60.0
#: Granularity of nearest times, in seconds.
ROUND_SECONDS = 300.0
_DAY = 86_400.0


def nearest_deadline(finish: float, now: float) -> float:
    """The next round time by which a run can finish, in Unix seconds.

    Args:
        finish: Its expected end; infinite if it never ends.
        now: Unix seconds.
    """
    if not math.isfinite(finish):
        return finish
    with_room = finish + max(ROOM_SHARE * (finish - now), ROOM_SECONDS)
    # Time zones are whole quarters of an hour, so the time is round on the local clock as well.
    return math.ceil(with_room / ROUND_SECONDS) * ROUND_SECONDS


def nearest_energy(kwh: float) -> float:
    """The next round energy that is enough for a run, in kWh: two decimals, from 10 kWh on none."""
    with_room = (1.0 + ROOM_SHARE) * kwh
    return float(math.ceil(with_room) if with_room >= 10 else math.ceil(with_room * 100) / 100)


def late(deadline: float, finish: float, now: float, how: str, fewer: str = "") -> Unkept:
    """A deadline that cannot be met.

    Args:
        deadline: Unix seconds.
        finish: The soonest end, in Unix seconds.
        now: Start of the run, or the present if it is running; the nearest deadline is the next after it.
        how: The speed, as a clause: ``at full speed``.
        fewer: An alternative, as the end of a list: ``or fewer steps``.
    """
    sentence = f"{day_time(deadline)} cannot be met: {how} it ends at {day_time(finish)}."
    nearest = nearest_deadline(finish, now)
    other = f", {fewer}" if fewer else ""
    local = time.localtime(nearest)
    if nearest - now > _DAY or nearest > next_time(local.tm_hour * 60 + local.tm_min, now):
        # A deadline is a time of day, and means the next one.
        return Unkept("night.deadline", sentence, f"No time within a day can be met: take the deadline away{other}.")
    return Unkept("night.deadline", sentence, f"Set {format_moment(nearest, '%H:%M')} or later{other}.")


def too_much(limit: float, kwh: float, how: str, fewer: str = "") -> Unkept:
    """An energy budget that is not enough.

    Args:
        limit: The energy budget, in kWh.
        kwh: The least energy that it takes.
        how: The condition, as a clause: ``at the least``.
        fewer: As for :func:`late`.
    """
    sentence = f"{energy(limit)} cannot be met: it takes {energy(kwh)} {how}."
    other = f", {fewer}" if fewer else ""
    return Unkept("night.energy_kwh", sentence, f"Set {energy(nearest_energy(kwh))} or more{other}.")


#: Duty cycles to try, and the least time and steps of each.
TRIED = (1.0, 0.7, 0.45)
TRIAL_SECONDS, TRIAL_STEPS = 30.0, 2
#: Points with duty cycles nearer than this are merged.
SAME_DUTY = 0.1
#: Seconds of steps that outweigh all earlier ones in a point.
MEMORY_SECONDS = 300.0


class _Sum:
    """Sums over steps of about one duty cycle; old ones fade."""

    def __init__(self) -> None:
        self.worked = self.tokens = self.seconds = 0.0
        self.joules: float | None = 0.0

    @property
    def duty(self) -> float:
        return self.worked / self.seconds

    @property
    def point(self) -> Point:
        watts = None if self.joules is None else self.joules / self.seconds
        return Point(self.duty, self.tokens / self.seconds, watts)

    def add(self, duty: float, tokens: int, seconds: float, joules: float | None) -> None:
        kept = max(1.0 - seconds / MEMORY_SECONDS, 0.0)
        self.worked = kept * self.worked + duty * seconds
        self.tokens = kept * self.tokens + tokens
        self.seconds = kept * self.seconds + seconds
        self.joules = None if joules is None or self.joules is None else kept * self.joules + joules


class Course:
    """Progress of a run, measured by duty cycle from its second step on, as the first one warms up."""

    def __init__(self) -> None:
        self.steps_left = 0
        """Optimizer steps to come; 0 before the first one is done."""
        self._tokens = self._steps = 0
        self._step_seconds = self._between_seconds = 0.0
        self._points: list[_Sum] = []
        self._tried: list[float] | None = None
        self._trial_seconds, self._trial_steps = 0.0, 0

    def begin_trials(self, *, has_power: bool) -> None:
        """Try a few duty cycles from now on; full work only if it was not measured long enough before.

        Args:
            has_power: Whether the device reports its energy; if not, one duty cycle is enough, as speed grows with it.
        """
        if self._tried is None:
            self._tried = list(TRIED if has_power else TRIED[:1])
            self._end_trial()

    def step_done(
        self, *, tokens: int, seconds: float, duty: float, joules: float | None, between: float, steps_left: int
    ) -> None:
        """Add an optimizer step.

        Args:
            tokens: Trained in it.
            seconds: Its duration, rests included.
            duty: The share of them that was work.
            joules: Energy used in it; None if the device does not report it.
            between: Seconds between it and the step before, pauses left out.
            steps_left: Optimizer steps to come.
        """
        self._steps += 1
        self.steps_left = steps_left
        if self._steps == 1:
            return
        self._tokens += tokens
        self._step_seconds += seconds
        self._between_seconds += between
        if seconds <= 0:
            return
        near = min(self._points, key=lambda item: abs(item.duty - duty), default=None)
        if near is None or abs(near.duty - duty) >= SAME_DUTY:
            near = _Sum()
            self._points.append(near)
        near.add(duty, tokens, seconds, joules)
        self._trial_seconds += seconds
        self._trial_steps += 1
        self._end_trial()

    @property
    def tokens_left(self) -> float:
        """Remaining work in tokens; evaluations and checkpoints are assumed to go on as before, and count as tokens."""
        left = self.steps_left * self._tokens / max(self._steps - 1, 1)
        return left * (1.0 + self._between_seconds / max(self._step_seconds, 1e-9))

    @property
    def trial(self) -> float | None:
        """The duty cycle to try now; None when enough is known, nothing is tried, or no work remains."""
        return self._tried[0] if self._tried and self.steps_left else None

    @property
    def curve(self) -> Curve | None:
        """Measured speed and power of the remaining work; None before the trials are over, and if no work remains."""
        if self._tried is None or self._tried or not self._points or not self.steps_left:
            return None
        return Curve([item.point for item in self._points])

    @property
    def known(self) -> Curve | None:
        """Best known curve of the remaining work: the measured one, else the speed alone, at full work or computed
        without the rests; None before that."""
        is_known = self._is_enough if self._tried is None else self._tried[:1] != [TRIED[0]]
        worked = sum(item.worked for item in self._points)
        if not self.steps_left or not is_known or worked <= 0:
            return None
        return self.curve or Curve([Point(1.0, sum(item.tokens for item in self._points) / worked, None)])

    @property
    def _is_enough(self) -> bool:
        return self._trial_seconds >= TRIAL_SECONDS and self._trial_steps >= TRIAL_STEPS

    def _end_trial(self) -> None:
        if self._tried and self._is_enough:
            del self._tried[0]
            self._trial_seconds, self._trial_steps = 0.0, 0


#: Share of the time to a deadline that is planned; the rest is reserve.
USED_SHARE = 0.98
#: Seconds between two plans.
PLAN_SECONDS = 30.0
#: A promise is announced again when its end or its energy has moved by this share of the remainder, or its end by so
#: much; a dropped wish is taken up again when it could be kept with as much room.
MOVED_SHARE, MOVED_SECONDS = 0.03, 60.0
#: Seconds after which an unchanged promise is announced again.
TOLD_SECONDS = 600.0
#: Time constant of the average of the duty cycle that heat allows, in seconds.
HEAT_SECONDS = 120.0
_JOULES_PER_KWH = 3.6e6


def _find(curve: Curve, left: float, wishes: Wishes, now: float, before: Plan | None) -> Plan:
    """The plan for some wishes; a dropped wish is kept again only with room, so that it does not swing.

    Args:
        curve: Speed and power.
        left: Tokens.
        wishes: The wishes.
        now: Unix seconds.
        before: The last plan; None for none.
    """
    joules, deadline = wishes.joules, wishes.deadline
    if joules is not None and before is not None and before.misses_energy:
        joules *= 1.0 - MOVED_SHARE
    is_late = False
    if deadline is not None:
        room = 0.0
        if before is not None and before.misses_deadline:
            room = max(MOVED_SHARE * (deadline - now), MOVED_SECONDS)
        is_late = soonest(curve, left, wishes).finish > deadline - room
    asked = replace(wishes, joules=joules)
    found = plan(curve, left, replace(asked, deadline=None, aim=None, is_hurried=True) if is_late else asked)
    return replace(found, misses_deadline=is_late)


class Night:
    """Plans a run.

    Args:
        limits: The wishes.
        now: Unix seconds; the deadline is the next one after it.
        course: Progress of the run, updated from then on.
        has_power: Whether the device reports its energy.
    """

    def __init__(self, limits: Limits, now: float, course: Course, *, has_power: bool) -> None:
        self.limits = limits
        self.deadline, self._aim = _deadline(limits, now)
        self.promise: Promise | None = None
        """The newest promise; None before the first minutes are measured."""
        self._course = course
        course.begin_trials(has_power=has_power)
        self._found: Plan | None = None
        self._nearest_deadline: float | None = None
        self._nearest_kwh: float | None = None
        self._planned_at: float | None = None
        self._told_at = now
        self._heat_duty = 1.0

    def change(self, limits: Limits, now: float) -> None:
        """Change the wishes; they are planned and promised anew."""
        before, self.limits = self.limits, limits
        self.deadline, self._aim = _deadline(limits, now)
        self.promise, self._planned_at = None, None
        if self._found is not None:
            # A new wish has not been dropped.
            self._found = replace(
                self._found,
                misses_deadline=self._found.misses_deadline and limits.deadline == before.deadline,
                misses_energy=self._found.misses_energy and limits.energy_kwh == before.energy_kwh,
            )

    def duty(self, now: float) -> float:
        """The largest duty cycle wanted now."""
        if (trial := self._course.trial) is not None:
            return trial
        if self._found is None:
            return 1.0
        quiet, chosen = self.limits.quiet is not None and self.limits.quiet.contains(now), self._found
        return chosen.quiet_duty if quiet and chosen.quiet_duty else chosen.duty

    def look(self, now: float, seconds: float, own_duty: float, used_joules: float | None) -> Promise | None:
        """Plan if it is time to.

        Args:
            now: Unix seconds.
            seconds: Since the last call.
            own_duty: The duty cycle requested by heat and power alone.
            used_joules: Energy used so far; None if the device does not report it.

        Returns:
            A promise to announce; None if nothing is new.
        """
        is_quiet = self.limits.quiet is not None and self.limits.quiet.contains(now)
        if not is_quiet:
            weight = min(seconds / HEAT_SECONDS, 1.0)
            self._heat_duty += weight * (own_duty - self._heat_duty)
        # After the last step nothing is left to plan: the last evaluation runs at the pace of the steps.
        curve = self._course.curve
        if curve is None or (self._planned_at is not None and now - self._planned_at < PLAN_SECONDS):
            return None
        self._planned_at = now
        return self._replan(curve, now, used_joules)

    @property
    def most_duty(self) -> float:
        """The largest duty cycle that heat has allowed recently; a difference within rounding and noise is no limit."""
        return 1.0 if self._heat_duty > 0.97 else self._heat_duty

    def gives_up(self, option: str) -> bool:
        """True if a wish is dropped: ``night.deadline`` or ``night.energy_kwh``."""
        found = self._found
        return found is not None and (found.misses_deadline if option == "night.deadline" else found.misses_energy)

    def _replan(self, curve: Curve, now: float, used_joules: float | None) -> Promise | None:
        left, before = self._course.tokens_left, self._found
        wishes = replace(_wishes(self.limits, now, used_joules, self.most_duty), deadline=self.deadline, aim=self._aim)
        found = _find(curve, left, wishes, now, before)
        # Without a meter an energy is nothing that is planned for.
        used = used_joules if curve.has_power else None
        whole = None if used is None else (used + found.joules) / _JOULES_PER_KWH
        moved = self._move_nearest(found, now, whole)
        cause = self._cause(found, before, now) or moved
        self._found = found
        if not cause:
            return None
        least = least_energy(curve, left, wishes) if found.misses_energy else None
        self.promise = self._promise(found, least, cause, used, whole)
        self._told_at = now
        return self.promise

    def _move_nearest(self, found: Plan, now: float, whole_kwh: float | None) -> str:
        """Find replacements for dropped wishes. A replacement stays until it is missed as well, or a much nearer one
        can be met. Returns the cause to announce it with; empty if nothing has moved."""
        before = self._nearest_deadline, self._nearest_kwh
        finish, nearest = found.finish, nearest_deadline(found.finish, now)
        far = 2 * (nearest - finish) if math.isfinite(finish) else 0.0
        if not found.misses_deadline:
            self._nearest_deadline = None
        elif (was := self._nearest_deadline) is None or not was - far <= finish <= was:
            self._nearest_deadline = nearest
        if not found.misses_energy or whole_kwh is None:
            self._nearest_kwh = None
        elif (kwh := self._nearest_kwh) is None or not (1.0 - 3 * MOVED_SHARE) * kwh <= whole_kwh <= kwh:
            self._nearest_kwh = nearest_energy(whole_kwh)
        after = self._nearest_deadline, self._nearest_kwh
        if before == after:
            return ""
        pairs = zip(before, after, strict=True)
        return "slower" if any(old is not None and new is not None and new > old for old, new in pairs) else "faster"

    def _cause(self, found: Plan, last: Plan | None, now: float) -> str:
        """The reason to announce a plan; empty if it is as before."""
        before = self.promise
        was = (last.misses_deadline, last.misses_energy) if last is not None else (False, False)
        if (found.misses_deadline and not was[0]) or (found.misses_energy and not was[1]):
            return "given_up"
        if (found.misses_deadline, found.misses_energy) != was and before is not None:
            return "taken_up"
        if before is None:
            return "measured" if last is None else "changed"
        moved = found.finish - before.finish
        if abs(moved) > max(MOVED_SHARE * max(found.finish - now, 0.0), MOVED_SECONDS):
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
    """Wishes that a run cannot meet, given its progress so far, each with the nearest possible value; none before its
    speed is known. The speed alone gives no least energy.

    Args:
        limits: The wishes, as if they were made now.
        course: Of the run.
        now: Unix seconds.
        used_joules: Energy used so far; None if the device does not report it.
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


def _deadline(limits: Limits, now: float) -> tuple[float | None, float | None]:
    """The deadline and the planned end before it, in Unix seconds; None if there is none."""
    if limits.deadline is None:
        return None, None
    deadline = next_time(limits.deadline, now)
    return deadline, now + USED_SHARE * (deadline - now)


def spans(limits: Limits, now: float) -> Iterator[Span]:
    """The time from now on, cut where quiet hours begin and end; a single span without them."""
    quiet, begin = limits.quiet, now
    if quiet is None:
        yield Span(now, float("inf"), is_quiet=False)
        return
    while begin < now + HORIZON:
        end = quiet.next_edge(begin)
        yield Span(begin, end, quiet.contains(begin))
        begin = end


def working_span(limits: Limits, now: float, seconds: float) -> tuple[float, float | None]:
    """Begin and end of a job, with the quiet hours in which training pauses counted, in Unix seconds. The end is None
    beyond :data:`~core.governor.plan.HORIZON`.

    Args:
        limits: Its limits; at reduced power in quiet hours, it is taken to go on at full speed.
        now: Unix seconds at which it could begin.
        seconds: Duration of the work, without pauses.
    """
    begin = quiet_until(limits, now) or now
    left = seconds
    for span in spans(limits, begin):
        is_at_work = not span.is_quiet or limits.quiet_power_w is not None
        if is_at_work and left <= span.end - span.begin:
            return begin, span.begin + left
        left -= is_at_work * (span.end - span.begin)
    return begin, None


def quiet_until(limits: Limits, moment: float) -> float | None:
    """End of the quiet hours that pause training at a Unix time, in Unix seconds; None if they do not."""
    quiet = limits.quiet
    pauses = quiet is not None and limits.quiet_power_w is None and quiet.contains(moment)
    return next_time(quiet.end, moment) if quiet is not None and pauses else None


def impossible(limits: Limits, now: float) -> tuple[str, str] | None:
    """The reason why no run can keep a deadline, and the nearest possible wish; None if one may keep it."""
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
