"""Pace and power of a run, measured: tokens a second and watts at a few duty cycles, at first and ever since."""

from __future__ import annotations

from core.governor.curve import Curve, Point

#: Duty cycles that are tried, and the least time and steps of each.
TRIED = (1.0, 0.7, 0.45)
TRIAL_SECONDS, TRIAL_STEPS = 30.0, 2
#: Points whose duty cycles are nearer than this are one.
SAME_DUTY = 0.1
#: Seconds of steps whose weight in a point is as large as that of all before.
MEMORY_SECONDS = 300.0


class Pace:
    """Measurements of steps by their duty cycle; from the first step on, whether anybody plans by them or not."""

    def __init__(self) -> None:
        self._tried: list[float] | None = None
        self._points: list[_Sum] = []
        self._seconds = 0.0
        self._steps = 0

    def begin_trials(self, *, has_power: bool) -> None:
        """Try a few duty cycles from now on; full work only where it was not measured long enough before.

        Args:
            has_power: Whether the device tells its energy; else one duty cycle says all, as speed goes with it.
        """
        if self._tried is None:
            self._tried = list(TRIED if has_power else TRIED[:1])
            self._end_trial()

    @property
    def trial(self) -> float | None:
        """The duty cycle that is to be tried now; None when enough is known, or nothing is tried."""
        return self._tried[0] if self._tried else None

    @property
    def curve(self) -> Curve | None:
        """What is known; None before the trials are over."""
        if self._tried is None or self._tried or not self._points:
            return None
        return Curve([item.point for item in self._points])

    @property
    def full_work(self) -> Curve | None:
        """Speed alone, as it was at full work, or as it would be without the rests; None before that is known."""
        is_known = self._is_enough if self._tried is None else self.trial != TRIED[0]
        worked = sum(item.worked for item in self._points)
        if not is_known or worked <= 0:
            return None
        return Curve([Point(1.0, sum(item.tokens for item in self._points) / worked, None)])

    def add(self, duty: float, tokens: int, seconds: float, joules: float | None) -> None:
        """Take a step in.

        Args:
            duty: The share of it that was worked.
            tokens: Trained in it.
            seconds: Rests included.
            joules: Used in it; None where the device does not tell.
        """
        if seconds <= 0:
            return
        near = min(self._points, key=lambda item: abs(item.duty - duty), default=None)
        if near is None or abs(near.duty - duty) >= SAME_DUTY:
            near = _Sum()
            self._points.append(near)
        near.add(duty, tokens, seconds, joules)
        self._seconds += seconds
        self._steps += 1
        self._end_trial()

    @property
    def _is_enough(self) -> bool:
        return self._seconds >= TRIAL_SECONDS and self._steps >= TRIAL_STEPS

    def _end_trial(self) -> None:
        if self._tried and self._is_enough:
            del self._tried[0]
            self._seconds, self._steps = 0.0, 0


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
