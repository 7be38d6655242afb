"""Readings that are held at a limit by the duty cycle: a temperature, and average power."""

from __future__ import annotations

from core.governor.control import DutyController
from core.governor.heating import HeatingRate
from core.governor.smoothing import AveragePower, WarmMean

#: Readings may be so old, and so long is their smoothing: seconds in which a change of duty is not seen yet. Twice that
#: is the time that the controller is made for.
REACTION_SECONDS = 9.0
#: Seconds of the integral of a temperature's controller.
TEMPERATURE_INTEGRAL = 30.0
#: The most duty that a degree is worth, as readings are whole degrees and noisy.
MOST_GAIN = 0.15

#: The time constant of average power, in seconds.
POWER_WINDOW = 20.0
#: Duty that being off by the whole limit is worth, and seconds of the integral.
POWER_GAIN, POWER_INTEGRAL = 0.3, 10.0
#: The longest time that one reading stands for, in seconds.
LONGEST_GAP = 10.0


class TemperatureHold:
    """Holds a temperature at a limit.

    Args:
        limit: Degrees Celsius.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.controller = DutyController()
        self.value: float | None = None
        """The temperature that is held: the mean of the warmer half of the newest readings."""
        self._warm = WarmMean()
        self._heating = HeatingRate()
        self._moment: float | None = None

    def learn(self, other: TemperatureHold) -> None:
        """Take over what another hold of the same temperature has seen."""
        self._warm, self._heating, self._moment = other._warm, other._heating, other._moment

    def observe(self, moment: float, temperature: float, duty: float) -> float:
        """Take a reading in.

        Args:
            moment: Seconds, of any clock that only goes up.
            temperature: Degrees Celsius.
            duty: The duty cycle that is applied.

        Returns:
            The duty cycle that it asks for.
        """
        seconds = _gap(self._moment, moment)
        self._moment = moment
        rate = self._heating.add(moment, temperature, duty)
        self.value = self._warm.add(temperature)
        gain = min(MOST_GAIN, 1.0 / (rate * REACTION_SECONDS))
        return self.controller.update(
            self.limit - self.value, seconds, gain=gain, integral_seconds=TEMPERATURE_INTEGRAL
        )


class PowerHold:
    """Holds average power at a limit.

    Args:
        limit: Watts.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.controller = DutyController()
        self._average = AveragePower(POWER_WINDOW)
        self._moment: float | None = None

    @property
    def value(self) -> float | None:
        """Average power in watts."""
        return self._average.watts

    def observe(self, moment: float, joules: float) -> float:
        """Take a reading in.

        Args:
            moment: Seconds, of any clock that only goes up.
            joules: Energy used so far.

        Returns:
            The duty cycle that it asks for.
        """
        seconds = _gap(self._moment, moment)
        self._moment = moment
        watts = self._average.add(moment, joules)
        if watts is None:
            return self.controller.duty
        gain = POWER_GAIN / self.limit
        return self.controller.update(self.limit - watts, seconds, gain=gain, integral_seconds=POWER_INTEGRAL)


def _gap(before: float | None, now: float) -> float:
    return 0.0 if before is None else min(max(now - before, 0.0), LONGEST_GAP)
