"""A PI controller of the duty cycle: the share of the time that is worked, which holds a reading at a limit.

In velocity form: each reading moves the duty by what the error has changed and by what it is, so that the integral
cannot wind up (Åström and Hägglund, Advanced PID Control, chapter 3). Several controllers of one duty follow the least
of them, each bounded by what was applied (override control).
"""

from __future__ import annotations

#: The smallest duty cycle; where that is still too much, only a pause helps.
FLOOR = 0.1
#: How far beyond full duty a controller may be, so that a noisy reading far from the limit slows nothing.
HEADROOM = 0.15


class DutyController:
    """The duty cycle by which one reading is held at a limit; full at first."""

    def __init__(self) -> None:
        self._duty = 1.0 + HEADROOM
        self._error: float | None = None

    @property
    def duty(self) -> float:
        """The duty cycle that it asks for, from :data:`FLOOR` to 1."""
        return min(self._duty, 1.0)

    def update(self, error: float, seconds: float, *, gain: float, integral_seconds: float) -> float:
        """Take a reading in.

        Args:
            error: The limit minus the reading.
            seconds: Since the reading before.
            gain: Duty per unit of error.
            integral_seconds: Seconds in which a lasting error moves the duty as far again as it did at first.

        Returns:
            The duty cycle that it asks for now.
        """
        before = error if self._error is None else self._error
        self._error = error
        self._duty = _clamped(self._duty + gain * (error - before + error * seconds / integral_seconds))
        return self.duty

    def follow(self, applied: float) -> None:
        """Bound it by the duty cycle that is applied, where another limit asks for less."""
        self._duty = _clamped(min(self._duty, applied + HEADROOM))

    def restart(self, duty: float) -> None:
        """Begin anew at a duty cycle."""
        self._duty, self._error = _clamped(duty), None


def _clamped(duty: float) -> float:
    return min(max(duty, FLOOR), 1.0 + HEADROOM)
