"""Governor: a thread that reads the meters, asks the policy, and carries out its decisions."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from core.config.live import GOVERNED, changed
from core.config.schema import Config
from core.directories import free_bytes
from core.errors import UserError
from core.governor.check import unkept
from core.governor.limits import Limits
from core.governor.night import Course, Night, unmet
from core.governor.policy import Action, Observation, Policy
from core.governor.promise import Promise
from core.governor.words import news, stopped_by
from core.hardware.cpu import memory as host_memory
from core.hardware.sampler import Sampler
from core.hardware.snapshot import Device
from core.runs.record.events import Event, GovernorEvent, NightEvent
from core.worker.process.control import Controls

#: Seconds between two readings of the meters, and for the first reading.
INTERVAL, FIRST_READING = 1.0, 5.0
#: Seconds without a reading after which the user is warned that no limit is kept.
BLIND_SECONDS = 30.0


class PowerLever(Protocol):
    """Sets the power limit of a card, if the system permits it."""

    def set_power_limit(self, uuid: str, watts: float) -> object:
        """Set the limit.

        Raises:
            UserError: If it cannot be set.
        """

    def restore(self, uuid: str) -> object:
        """Restore the previous limit.

        Raises:
            UserError: If it cannot be set.
        """


#: Reports to the user: ``notice(level, code, message, hint)``.
Notice = Callable[[str, str, str, str], None]


@dataclass(eq=False)
class Governor:
    """Governs one run. Without limits, it has no thread.

    Args:
        config: Of the run.
        meters: Meters of the run's device.
        controls: Stops the run.
        throttle: Slows the training thread.
        tell: Receives events.
        notice: Reports to the user.
        directory: Run directory, whose disk is watched.
        is_paused: Returns True if the run is paused, for any reason.
        lever: Sets the card's power limit; None if impossible.
        interval: Seconds between two readings.
        clock: Monotonic clock in seconds.
        wall: Unix seconds.
    """

    config: Config
    _: KW_ONLY
    meters: Sampler
    controls: Controls
    throttle: Throttle
    tell: Callable[[Event], None]
    notice: Notice
    directory: Path
    is_paused: Callable[[], bool]
    lever: PowerLever | None = None
    interval: float = INTERVAL
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    pause: Action | None = field(default=None, init=False)
    """Action that pauses training; None if there is none. Read by the training thread."""

    def __post_init__(self) -> None:
        self._limits = Limits.of(self.config)
        """Limits in force."""
        self._next: Limits | None = None
        self._guard = threading.Lock()
        self._planning = threading.Lock()
        """Guards the course and the night."""
        self._course = Course()
        self._steps: list[Callable[[], None]] = []
        """Add the steps since the last look to the course."""
        self._last_step_end: float | None = None
        self._joules_before: float | None = None
        self._wants_checkpoint = False
        self._closed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._policy = Policy(self._limits)
        self._night: Night | None = None
        self._promised: Promise | None = None
        self._looked: float | None = None
        self._limited = ""
        self._told: set[str] = set()
        self._has_stopped = False

    # For the training thread.

    def check(self, overrides: Mapping[str, Any] | None = None) -> Limits:
        """The configured limits with changes applied, if this device can keep them.

        Args:
            overrides: Changed options by ``section.key``.

        Raises:
            UserError: If a limit cannot be kept here, a wish cannot be met at any cost of the run, or a new wish cannot
                be met at this run's pace.
        """
        mine = {name: value for name, value in (overrides or {}).items() if name in GOVERNED}
        limits = Limits.of(changed(self.config, mine))
        if limits.is_any:
            self._refuse_unkept(limits)
            self._refuse_unmet(limits)
        return limits

    def _refuse_unkept(self, limits: Limits) -> None:
        devices = self.meters.refresh(FIRST_READING)
        has_energy = self.meters.energy_wh is not None
        for found in unkept(limits, devices[0] if devices else None, self.wall(), has_energy=has_energy):
            raise UserError(found.sentence, found.hint)

    def _refuse_unmet(self, limits: Limits) -> None:
        """Refuse new wishes that cannot be met. Limits on heat and power are not wishes: they hold, and wishes that
        they make impossible are given up."""
        before, night = self._limits, self._night
        if limits.wishes == before.wishes:
            return
        with self._planning:
            most_duty = night.most_duty if night is not None else 1.0
            found = list(unmet(limits, self._course, self.wall(), self._joules(), most_duty))
        for wish in found:
            is_as_before = limits.wish(wish.option) == before.wish(wish.option)
            if not (is_as_before and night is not None and night.gives_up(wish.option)):
                raise UserError(wish.sentence, wish.hint)

    @contextlib.contextmanager
    def governing(self, overrides: Mapping[str, Any]) -> Iterator[None]:
        """Context with the governor on; the card's power limit is restored at the end.

        Args:
            overrides: Options changed while running, by ``section.key``.
        """
        limits = self.check(overrides)
        self._put_back()
        self.change(limits)
        try:
            yield
        finally:
            self._closed = True
            self._wake.set()
            if self._thread is not None:
                self._thread.join(timeout=2 * FIRST_READING)
            self._limit_power(None)

    def _put_back(self) -> None:
        """Restore the power limit that a killed run has left on the card."""
        devices = self.meters.refresh(self.interval) if self.lever is not None else []
        if self.lever is not None and devices and devices[0].uuid:
            with contextlib.suppress(UserError):  # without permission it was never changed
                self.lever.restore(devices[0].uuid)

    def change(self, limits: Limits) -> None:
        """Apply other limits from now on."""
        self._limits = limits
        with self._guard:
            self._next = limits
        self._wake.set()
        if limits.is_any and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="governor", daemon=True)
            self._thread.start()

    def step_done(self, *, tokens: int, seconds: float, rested: float, paused: float, steps_left: int) -> None:
        """Report a finished optimizer step.

        Args:
            tokens: Tokens of the step.
            seconds: Duration, including rests.
            rested: Seconds of rest in it.
            paused: Seconds of pause before it.
            steps_left: Remaining optimizer steps.
        """
        now, joules = self.clock(), self._joules()
        between = 0.0 if self._last_step_end is None else max(now - self._last_step_end - seconds - paused, 0.0)
        before, self._joules_before, self._last_step_end = self._joules_before, joules, now
        used = None
        if joules is not None and before is not None:
            # Energy between two steps was used at about the same power.
            used = (joules - before) * (seconds / max(seconds + between + paused, 1e-9))
        duty = 1.0 - rested / max(seconds, 1e-9)
        take_in = partial(
            self._course.step_done,
            tokens=tokens,
            seconds=seconds,
            duty=duty,
            joules=used,
            between=between,
            steps_left=steps_left,
        )
        if self._thread is None:
            self._take_in([take_in])
            return
        with self._guard:
            self._steps.append(take_in)

    def take_checkpoint(self) -> bool:
        """True if a checkpoint is wanted; resets the request."""
        wanted, self._wants_checkpoint = self._wants_checkpoint, False
        return wanted

    # The thread.

    def _run(self) -> None:
        while not self._closed:
            self._look()
            self._wake.wait(self.interval)
            self._wake.clear()

    def _look(self) -> None:
        with self._guard:
            limits, self._next = self._next, None
            steps, self._steps = self._steps, []
        if limits is not None:
            self._begin(limits)
        devices = self.meters.refresh(self.interval)
        device = devices[0] if devices else None
        joules, now, wall = self._joules(), self.clock(), self.wall()
        plan_duty = self._plan(steps, now, wall, joules)
        used, total = host_memory()
        decision = self._policy.observe(
            Observation(
                moment=now,
                time=wall,
                at_work=not self.is_paused(),
                device=device,
                joules=joules,
                host_memory_percent=100.0 * used / max(total, 1),
                disk_free_gb=self._disk_free(),
                plan_duty=plan_duty,
            )
        )
        self.throttle.duty = decision.duty
        for action in decision.actions:
            self._carry_out(action, device)
        self.pause = decision.pause
        self._tell_blindness()

    def _begin(self, limits: Limits) -> None:
        """Apply new limits; actions whose limit is unchanged continue."""
        self._policy = self._policy.with_limits(limits)
        with self._planning:
            if not limits.wants_plan:
                self._night = self._promised = None
            elif self._night is None:
                self._night = Night(limits, self.wall(), self._course, has_power=self._joules() is not None)
            else:
                self._night.change(limits, self.wall())

    def _take_in(self, steps: list[Callable[[], None]]) -> None:
        """Add steps to the course of the run, which is kept even without a plan."""
        with self._planning:
            for take_in in steps:
                take_in()

    def _plan(self, steps: list[Callable[[], None]], now: float, wall: float, joules: float | None) -> float:
        """Maximum duty cycle wanted by the plan after the finished steps."""
        self._take_in(steps)
        seconds, self._looked = now - (self._looked if self._looked is not None else now), now
        if (night := self._night) is None:
            return 1.0
        with self._planning:
            promise = night.look(wall, seconds, self._policy.own_duty, joules)
            duty = night.duty(wall)
        if promise is not None:
            self._promise(promise)
        return duty

    def _promise(self, promise: Promise) -> None:
        before, self._promised = self._promised, promise
        self.tell(NightEvent(**vars(promise)))
        for level, code, message, hint in news(before, promise):
            self.notice(level, code, message, hint)

    def _carry_out(self, action: Action, device: Device | None) -> None:
        if action.action == "power_limit":
            if not self._limit_power(action.value, device):
                return
        elif action.action == "checkpoint":
            self._wants_checkpoint = True
        elif action.action == "stop":
            if self._has_stopped:
                return
            self._has_stopped = True
        self.tell(GovernorEvent(**vars(action)))
        if action.action == "stop":
            self.controls.request_stop(stopped_by(action.cause, action.value, action.limit))

    def _limit_power(self, watts: float | None, device: Device | None = None) -> bool:
        """Set the card's power limit, or restore its own; returns True if done."""
        lever = self.lever
        if watts is None and not self._limited:
            return False
        if lever is None or (watts is not None and (device is None or not device.uuid)):
            self._policy.can_limit_power = False
            return False
        try:
            if watts is None:
                lever.restore(self._limited)
                self._limited = ""
            elif device is not None:
                lever.set_power_limit(device.uuid, watts)
                self._limited = device.uuid
        except UserError as error:
            self._policy.can_limit_power = False
            self._limited = ""
            if "power_limit" not in self._told:
                self._told.add("power_limit")
                message = f"Power is held by rests. {error.message}"
                self.notice("info", "governor_power_limit", message, error.hint)
            return False
        return True

    def _joules(self) -> float | None:
        hours = self.meters.energy_wh
        return None if hours is None else 3600.0 * hours

    def _disk_free(self) -> float | None:
        free = free_bytes(self.directory) if self._policy.limits.disk_free_gb is not None else None
        return None if free is None else free / 1e9

    def _tell_blindness(self) -> None:
        age = self.meters.age()
        if age is None or age < BLIND_SECONDS or "blind" in self._told:
            return
        self._told.add("blind")
        message = f"The device has told nothing for {age:.0f} s: heat and power are not held meanwhile."
        self.notice("warning", "governor_blind", message, "Try 'nvidia-smi'; if it hangs as well, reboot.")


#: Maximum owed rest, in seconds: rest cut short by a request is made up for, within this bound.
MOST_OWED = 120.0
#: Maximum rest before checking the duty cycle and signals again, in seconds.
SLICE = 0.2
#: Minimum rest, in seconds.
SHORTEST = 1e-4


def _nothing() -> None:
    """A CPU is done when the call returns."""


@dataclass
class Throttle:
    """Rests so that a given share of the time is spent working. Another thread sets :attr:`duty`; the training thread
    calls :meth:`rest`, which costs one comparison at full duty.

    Args:
        controls: A request ends a rest at once; the remainder is owed.
        duty: Share of time spent working.
        synchronize: Waits until the device is idle, since GPU work continues after the call.
        clock: Monotonic clock in seconds.
    """

    controls: Controls
    duty: float = 1.0
    synchronize: Callable[[], None] = _nothing
    clock: Callable[[], float] = time.monotonic
    rested_seconds: float = field(default=0.0, init=False)
    """Seconds rested so far."""
    _since: float | None = field(default=None, init=False)
    _owed: float = field(default=0.0, init=False)

    def rest(self) -> None:
        """Rest for the work since the last call."""
        duty = self.duty
        if duty >= 1.0:
            self._since = None
            return
        self.synchronize()
        now = self.clock()
        if self._since is not None:
            self._owed = min(self._owed + (now - self._since) * (1.0 / duty - 1.0), MOST_OWED)
            self._rest()
        self._since = self.clock()

    def _rest(self) -> None:
        began = self.clock()
        while self._owed > SHORTEST and self.duty < 1.0:
            goes_on = self.controls.rest(min(self._owed, SLICE))
            now = self.clock()
            self._owed -= now - began
            self.rested_seconds += now - began
            began = now
            if not goes_on:
                return
        self._owed = 0.0

    def paused(self) -> None:
        """Reset after a pause, which was rest enough."""
        self._since, self._owed = None, 0.0
