"""The policy: readings in, actions out. Without a clock, a device or a thread of its own.

Its actions, in this order: a smaller duty cycle between micro-batches; where the system permits it, a lower power
limit of the card; a pause, which ends by itself; a checkpoint and a stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from core.config.clock import next_time
from core.governor.holds import PowerHold, TemperatureHold
from core.governor.limits import FLOOR, Limits
from core.hardware.snapshot import Device

#: Causes, as events name them.
TEMPERATURE, MEMORY_TEMPERATURE, POWER = "temperature", "memory temperature", "power"
QUIET_HOURS, QUIET_POWER = "quiet hours", "quiet power"
HOST_MEMORY, DISK, PLAN = "host memory", "disk", "plan"

#: A pause for heat: at the smallest duty, degrees above the limit, and for how many seconds; or far above it.
PAUSE_ABOVE_C, PAUSE_SECONDS = 3.0, 20.0
FAR_ABOVE_C, FAR_SECONDS = 8.0, 5.0
#: The pause ends this many degrees below the limit, and work begins again with this duty cycle.
RESUME_BELOW_C, RESUME_DUTY = 5.0, 2 * FLOOR
#: Seconds after which a pause that has not cooled the card never will.
HOPELESS_SECONDS = 900.0
#: The machine's memory: seconds above the limit to a checkpoint, and to a stop.
MEMORY_CHECKPOINT_SECONDS, MEMORY_STOP_SECONDS = 5.0, 60.0
MEMORY_BACK_PERCENT = 2.0
#: Quiet hours: share of their power that, exceeded at the smallest duty for so many seconds, pauses training until they
#: end.
LOUD_SHARE, LOUD_SECONDS = 1.1, 60.0
#: Free disk space, as a multiple of the limit, that ends a pause.
DISK_BACK = 1.1
#: A duty cycle below the first is announced as slow, from the second on as full again.
SLOW_DUTY, FULL_DUTY = 0.95, 0.99
#: Least change to announce again, and least seconds between announcements.
RETOLD_DUTY, RETOLD_SECONDS = 0.1, 60.0
FULL_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Readings at a moment."""

    moment: float
    """Seconds, of a clock that only goes up."""
    time: float
    """Unix seconds."""
    at_work: bool = True
    """True if neither the user nor the governor has paused training."""
    device: Device | None = None
    joules: float | None = None
    """Energy used so far."""
    host_memory_percent: float | None = None
    disk_free_gb: float | None = None
    plan_duty: float = 1.0
    """Largest duty cycle of the plan for the night."""


@dataclass(frozen=True)
class Action:
    """An announced action of the governor.

    Args:
        action: ``slow``, ``full``, ``power_limit``, ``pause``, ``resume``, ``checkpoint`` or ``stop``.
        cause: Its cause.
        value: The measured value.
        limit: Its limit.
        duty: The duty cycle from now on.
    """

    action: str
    cause: str
    value: float | None = None
    limit: float | None = None
    duty: float | None = None


@dataclass(frozen=True)
class Decision:
    """The state from now on."""

    duty: float
    pause: Action | None
    """Why training pauses; None if it does not."""
    stop: Action | None
    power_limit_w: float | None
    """The card's power limit; None for its own."""
    actions: tuple[Action, ...]
    """New actions, to be announced."""


@dataclass
class _Since:
    """Timer of a condition."""

    began: float | None = None

    def seconds(self, moment: float, *, holds: bool) -> float:
        if not holds:
            self.began = None
            return -1.0
        self.began = moment if self.began is None else self.began
        return moment - self.began


@dataclass
class _Heat:
    """A temperature limit, held by the duty cycle, or by a pause if that is not enough."""

    cause: str
    hold: TemperatureHold
    above: _Since = field(default_factory=_Since)
    far_above: _Since = field(default_factory=_Since)
    paused: _Since = field(default_factory=_Since)
    is_pausing: bool = False
    wants_least_power: bool = False
    last: float | None = None

    def observe(self, moment: float, value: float, duty: float, *, at_work: bool) -> None:
        self.last = value
        if at_work:
            self.hold.observe(moment, value, duty)

    def settle(self, moment: float, duty: float, *, can_limit_power: bool) -> None:
        """Decide on the pause."""
        if self.last is None:
            return
        limit = self.hold.limit
        if self.is_pausing:
            self.is_pausing = self.last > limit - RESUME_BELOW_C
            if not self.is_pausing:
                self.hold.controller.restart(RESUME_DUTY)
        else:
            at_floor = duty <= FLOOR + 0.01
            too_hot = at_floor and self.last > limit + PAUSE_ABOVE_C
            far = self.far_above.seconds(moment, holds=self.last > limit + FAR_ABOVE_C) >= FAR_SECONDS
            if far or self.above.seconds(moment, holds=too_hot) >= PAUSE_SECONDS:
                if can_limit_power and not self.wants_least_power and not far:
                    self.wants_least_power = True
                else:
                    self.is_pausing = True
                self.above.began = self.far_above.began = None
        self.paused.seconds(moment, holds=self.is_pausing)

    def is_hopeless(self, moment: float) -> bool:
        return self.paused.began is not None and moment - self.paused.began >= HOPELESS_SECONDS

    def action(self, name: str) -> Action:
        return Action(name, self.cause, self.last, self.hold.limit)


class Policy:
    """The governor's decisions for one run.

    Args:
        limits: The limits.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.can_limit_power = True
        """True if the system allows setting the card's power limit; the caller unsets it when that fails."""
        self.duty = 1.0
        """The duty cycle from now on."""
        self._heats = [
            _Heat(cause, TemperatureHold(limit))
            for cause, limit in ((TEMPERATURE, limits.temperature_c), (MEMORY_TEMPERATURE, limits.memory_temperature_c))
            if limit is not None
        ]
        self._power = None if limits.power_w is None else PowerHold(limits.power_w)
        self._quiet_power = None if limits.quiet is None or limits.quiet_power_w is None else limits.quiet_power_w
        self._quiet_hold: PowerHold | None = None
        self._loud = _Since()
        self._is_too_loud = False
        self._disk_pauses = False
        self._memory = _Since()
        self._memory_saved = False
        self._pause: Action | None = None
        self._power_limit: float | None = None
        self._telling = _Telling()

    def with_limits(self, limits: Limits) -> Policy:
        """A policy with other limits, which continues from the present duty cycle."""
        if limits == self.limits:
            return self
        policy = Policy(limits)
        policy.can_limit_power, policy.duty = self.can_limit_power, self.duty
        policy._pause, policy._power_limit, policy._telling = self._pause, self._power_limit, self._telling
        before = {heat.cause: heat.hold for heat in self._heats}
        for heat in policy._heats:
            if heat.cause in before:
                heat.hold.learn(before[heat.cause])
        if self.duty < 1.0:
            for _, hold in policy._holds():
                hold.controller.restart(self.duty)
        return policy

    @property
    def own_duty(self) -> float:
        """The duty cycle requested by heat and power alone, without the plan."""
        return min([hold.controller.duty for _, hold in self._holds()], default=1.0)

    def observe(self, seen: Observation) -> Decision:
        """Decide on readings, about once a second."""
        self._read(seen)
        causes: list[tuple[float, str, float | None, float | None]] = [
            (hold.controller.duty, cause, hold.value, hold.limit) for cause, hold in self._holds()
        ]
        causes.append((seen.plan_duty, PLAN, None, None))
        least = min(causes, key=lambda item: item[0])
        self.duty = max(least[0], FLOOR)
        for _, hold in self._holds():
            hold.controller.follow(self.duty)
        device = seen.device
        limits_power = self.can_limit_power and device is not None and device.power_limit_min_w is not None
        for heat in self._heats:
            heat.settle(seen.moment, self.duty, can_limit_power=limits_power)
        actions = [*self._settle_power_limit(device if limits_power else None)]
        stop, checkpoint = self._settle_memory(seen)
        hopeless = next((heat for heat in self._heats if heat.is_hopeless(seen.moment)), None)
        stop = hopeless.action("stop") if hopeless is not None else stop
        actions += self._settle_pause(seen)
        if seen.at_work and self._pause is None:
            actions += self._telling.tell(seen.moment, *least)
        actions += [action for action in (checkpoint, stop) if action is not None]
        return Decision(self.duty, self._pause, stop, self._power_limit, tuple(actions))

    def _holds(self) -> Iterator[tuple[str, TemperatureHold | PowerHold]]:
        for heat in self._heats:
            yield heat.cause, heat.hold
        if self._power is not None:
            yield POWER, self._power
        if self._quiet_hold is not None:
            yield QUIET_POWER, self._quiet_hold

    def _read(self, seen: Observation) -> None:
        is_quiet = self.limits.quiet is not None and self.limits.quiet.contains(seen.time)
        if self._quiet_power is not None and is_quiet != (self._quiet_hold is not None):
            self._quiet_hold = PowerHold(self._quiet_power) if is_quiet else None
        device = seen.device
        for heat in self._heats:
            value = None if device is None else _temperature(device, heat.cause)
            if value is not None:
                heat.observe(seen.moment, value, self.duty, at_work=seen.at_work)
        if seen.joules is not None and seen.at_work:
            for hold in (self._power, self._quiet_hold):
                if hold is not None:
                    hold.observe(seen.moment, seen.joules)

    def _settle_power_limit(self, device: Device | None) -> Iterator[Action]:
        """Set the card's own power limit; it saves more than rests do, as a slower clock needs less voltage."""
        wanted: list[tuple[float, str, float | None]] = []
        if device is not None and device.power_limit_min_w is not None:
            for cause, hold in ((POWER, self._power), (QUIET_POWER, self._quiet_hold)):
                if hold is not None:
                    wanted.append((max(hold.limit, device.power_limit_min_w), cause, hold.limit))
            for heat in self._heats:
                if heat.wants_least_power:
                    wanted.append((device.power_limit_min_w, heat.cause, heat.hold.limit))
            most = device.power_limit_max_w
            wanted = [item for item in wanted if most is None or item[0] < most]
        watts, cause, limit = min(wanted, default=(None, POWER, None))
        if watts != self._power_limit:
            self._power_limit = watts
            yield Action("power_limit", cause, watts, limit)

    def _settle_pause(self, seen: Observation) -> Iterator[Action]:
        cause = next((heat.action("pause") for heat in self._heats if heat.is_pausing), None)
        cause = cause or self._quiet_pause(seen) or self._disk_pause(seen.disk_free_gb)
        before, self._pause = self._pause, cause
        if before is not None and (cause is None or cause.cause != before.cause):
            value = next((heat.last for heat in self._heats if heat.cause == before.cause), None)
            if before.cause == DISK:
                value = seen.disk_free_gb
            limit = before.limit
            if before.cause == QUIET_HOURS and before.value is not None and seen.time < before.value:
                # They were lifted or changed before their end.
                value = before.value
                limit = next_time(self.limits.quiet.end, seen.time) if self.limits.quiet is not None else None
            if cause is None:
                yield Action("resume", before.cause, value, limit)
        if cause is not None and (before is None or before.cause != cause.cause):
            self._telling.forget()
            yield cause

    def _quiet_pause(self, seen: Observation) -> Action | None:
        """The pause through quiet hours: if nothing is allowed in them, or the least work is too loud."""
        if self.limits.quiet is None or not self.limits.quiet.contains(seen.time):
            self._is_too_loud = False
            return None
        hold = self._quiet_hold
        if hold is None:
            return Action("pause", QUIET_HOURS, next_time(self.limits.quiet.end, seen.time))
        loud = self.duty <= FLOOR + 0.01 and hold.value is not None and hold.value > LOUD_SHARE * hold.limit
        seconds = self._loud.seconds(seen.moment, holds=loud and seen.at_work)
        self._is_too_loud = self._is_too_loud or seconds >= LOUD_SECONDS
        return Action("pause", QUIET_POWER, hold.value, hold.limit) if self._is_too_loud else None

    def _disk_pause(self, free: float | None) -> Action | None:
        least = self.limits.disk_free_gb
        if least is None or free is None:
            return None
        self._disk_pauses = free < least * (DISK_BACK if self._disk_pauses else 1.0)
        return Action("pause", DISK, free, least) if self._disk_pauses else None

    def _settle_memory(self, seen: Observation) -> tuple[Action | None, Action | None]:
        """The stop and the checkpoint requested by the machine's memory."""
        limit, value = self.limits.host_memory_percent, seen.host_memory_percent
        if limit is None or value is None:
            return None, None
        line = limit - MEMORY_BACK_PERCENT if self._memory.began is not None else limit
        seconds = self._memory.seconds(seen.moment, holds=value > line)
        if seconds >= MEMORY_STOP_SECONDS:
            return Action("stop", HOST_MEMORY, value, limit), None
        if seconds < MEMORY_CHECKPOINT_SECONDS:
            self._memory_saved = self._memory_saved and seconds >= 0
            return None, None
        was_saved, self._memory_saved = self._memory_saved, True
        return None, None if was_saved else Action("checkpoint", HOST_MEMORY, value, limit)


class _Telling:
    """Announcements of the duty cycle: the first time, when it has moved, and when it is full again."""

    def __init__(self) -> None:
        self._duty = 1.0
        self._cause = ""
        self._at = -RETOLD_SECONDS
        self._full = _Since()

    def forget(self) -> None:
        """Forget the announced duty cycle, because a pause is announced instead."""
        self._duty, self._cause = 1.0, ""

    def tell(
        self, moment: float, duty: float, cause: str, value: float | None, limit: float | None
    ) -> Iterator[Action]:
        """New announcements."""
        is_slow = self._duty < 1.0
        full = self._full.seconds(moment, holds=is_slow and duty >= FULL_DUTY) >= FULL_SECONDS
        if full:
            told, self._duty = self._cause, 1.0
            yield Action("full", told, value if told == cause else None, limit if told == cause else None, 1.0)
            return
        moved = abs(duty - self._duty) >= RETOLD_DUTY or (is_slow and cause != self._cause and duty < SLOW_DUTY)
        if duty < SLOW_DUTY and (not is_slow or moved) and (not is_slow or moment - self._at >= RETOLD_SECONDS):
            self._duty, self._cause, self._at = duty, cause, moment
            yield Action("slow", cause, value, limit, round(duty, 2))


def _temperature(device: Device, cause: str) -> float | None:
    return device.temperature_c if cause == TEMPERATURE else device.memory_temperature_c
