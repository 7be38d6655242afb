"""Limits of a run: the hours of work and the energy after which it ends with its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from core.units import exact_number


class Limits:
    """Counts what a run has spent, over all its starts.

    Args:
        hours: Hours of work at most; None for no limit.
        watt_hours: Energy at most; None for no limit.
        energy: Watt-hours that this process has taken; None where no device reports its power.
        clock: Seconds, by a clock that nobody sets.
    """

    def __init__(
        self,
        hours: float | None = None,
        watt_hours: float | None = None,
        energy: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hours, self._watt_hours, self._energy, self._clock = hours, watt_hours, energy, clock
        self._began, self._paused = clock(), 0.0
        self._seconds_before = self._energy_before = 0.0

    def pause(self, seconds: float) -> None:
        """Seconds of pause that are over do not count."""
        self._paused += seconds

    @property
    def seconds(self) -> float:
        """Seconds of work over all starts."""
        return self._seconds_before + max(self._clock() - self._began - self._paused, 0.0)

    @property
    def watt_hours(self) -> float:
        """Energy over all starts, as far as devices report it."""
        return self._energy_before + (self._energy() or 0.0)

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self._hours is not None or self._watt_hours is not None

    @property
    def is_blind(self) -> bool:
        """Whether energy is limited, and no device reports its power."""
        return self._watt_hours is not None and self._energy() is None

    def reached(self, pausing: float = 0.0) -> str | None:
        """The limit that is reached, as the reason of an end; None while none is.

        Args:
            pausing: Seconds of pause that :meth:`pause` has not been told yet.
        """
        if self._hours is not None and self.seconds - pausing >= self._hours * 3600:
            return f"train.max_hours = {exact_number(self._hours)} is reached"
        if self._watt_hours is not None and self.watt_hours >= self._watt_hours:
            return f"train.max_energy_wh = {exact_number(self._watt_hours)} is reached"
        return None

    def facts(self) -> dict[str, Any]:
        """What is spent, as JSON, for a checkpoint."""
        return {"seconds": self.seconds, "watt_hours": self.watt_hours}

    def resume(self, facts: Mapping[str, Any] | None) -> None:
        """Go on from what a checkpoint says was spent; None where it is of an earlier version."""
        if facts is not None:
            self._seconds_before = float(facts["seconds"])
            self._energy_before = float(facts["watt_hours"])
