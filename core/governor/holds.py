"""Control loops that hold a reading at a limit by the duty cycle: temperature and average power."""

from __future__ import annotations

import math
from collections import deque
from statistics import linear_regression

from core.governor.limits import FLOOR

#: Readings per slope.
SLOPE_READINGS = 8
#: Newest slopes that are compared.
COMPARED = 60
#: Least difference of two duty cycles at which the difference of their slopes is significant.
LEAST_CONTRAST = 0.3
#: The rate before anything is known, °C a second.
FIRST_RATE = 0.5
#: Headroom of a controller above full duty, so that a noisy reading far from the limit slows nothing.
HEADROOM = 0.15


class DutyController:
    """Controller of the duty cycle that holds a reading at a limit; full at first."""

    def __init__(self) -> None:
        self._duty = 1.0 + HEADROOM
        self._error: float | None = None

    @property
    def duty(self) -> float:
        """The requested duty cycle, from :data:`FLOOR` to 1."""
        return min(self._duty, 1.0)

    def update(self, error: float, seconds: float, *, gain: float, integral_seconds: float) -> float:
        """Update with a reading.

        Args:
            error: The limit minus the reading.
            seconds: Since the reading before.
            gain: Duty per unit of error.
            integral_seconds: Seconds in which a lasting error moves the duty as far again as it did at first.

        Returns:
            The requested duty cycle.
        """
        before = error if self._error is None else self._error
        self._error = error
        self._duty = _clamped(self._duty + gain * (error - before + error * seconds / integral_seconds))
        return self.duty

    def follow(self, applied: float) -> None:
        """Bound it by the applied duty cycle, if another limit requests less."""
        self._duty = _clamped(min(self._duty, applied + HEADROOM))

    def restart(self, duty: float) -> None:
        """Begin anew at a duty cycle."""
        self._duty, self._error = _clamped(duty), None


def _clamped(duty: float) -> float:
    return min(max(duty, FLOOR), 1.0 + HEADROOM)


class HeatingRate:
    """Heating rate of the card at full duty against none, °C a second; the greatest seen so far.

    Estimated when a card at rest is put to work, and from then on by the effect of slower work. A rate that is
    too low would make the controller swing; swinging corrects the rate.
    """

    def __init__(self) -> None:
        self.rate = FIRST_RATE
        """Degrees a second."""
        self._readings: deque[tuple[float, float]] = deque(maxlen=SLOPE_READINGS)
        self._slopes: deque[tuple[float, float]] = deque(maxlen=COMPARED)

    def add(self, moment: float, temperature: float, duty: float) -> float:
        """Take a reading in.

        Args:
            moment: Seconds, of any clock that only goes up.
            temperature: Degrees Celsius.
            duty: The duty cycle at that moment.

        Returns:
            The rate.
        """
        self._readings.append((moment, temperature))
        slope = self._slope()
        if slope is None:
            return self.rate
        self._slopes.append((slope, duty))
        slopes, duties = zip(*self._slopes, strict=True)
        contrast = max(duties) - min(duties)
        changed = (max(slopes) - min(slopes)) / contrast if contrast > LEAST_CONTRAST else 0.0
        self.rate = max(self.rate, slope, changed)
        return self.rate

    def _slope(self) -> float | None:
        """The least-squares slope of the newest readings, °C a second; None while there are too few."""
        moments, values = zip(*self._readings, strict=True)
        if len(moments) < SLOPE_READINGS or moments[0] == moments[-1]:
            return None
        return linear_regression(moments, values).slope


#: Age and smoothing of readings: seconds in which a change of duty is not visible yet. The controller is designed for
#: twice that.
REACTION_SECONDS = 9.0
#: Seconds of the integral of a temperature's controller.
TEMPERATURE_INTEGRAL = 30.0
#: Most duty per degree, as readings are whole degrees and noisy.
MOST_GAIN = 0.15

#: Newest readings of a temperature, of whose warmer half the mean is held.
WARM_READINGS = 6
#: The time constant of average power, in seconds.
POWER_WINDOW = 20.0
#: Duty for an error as large as the limit, and seconds of the integral.
POWER_GAIN, POWER_INTEGRAL = 0.3, 10.0
#: Longest time between two readings, in seconds.
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
        """The controlled temperature: the mean of the warmer half of the newest readings."""
        # A chip cools by several degrees in the rest between two micro-batches, and readings fall on work and on rest;
        # the temperature to hold is that of work.
        self._newest: deque[float] = deque(maxlen=WARM_READINGS)
        self._heating = HeatingRate()
        self._moment: float | None = None

    def learn(self, other: TemperatureHold) -> None:
        """Take over the state of another hold of the same temperature."""
        self._newest, self._heating, self._moment = other._newest, other._heating, other._moment

    def observe(self, moment: float, temperature: float, duty: float) -> float:
        """Take a reading in.

        Args:
            moment: Seconds, of any clock that only goes up.
            temperature: Degrees Celsius.
            duty: The applied duty cycle.

        Returns:
            The duty cycle that it asks for.
        """
        seconds = _gap(self._moment, moment)
        self._moment = moment
        rate = self._heating.add(moment, temperature, duty)
        self._newest.append(temperature)
        warm = sorted(self._newest)[len(self._newest) // 2 :]
        self.value = sum(warm) / len(warm)
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
        self.value: float | None = None
        """Average power in watts, with an exponential window; None before the second reading."""
        self._before: tuple[float, float] | None = None

    def observe(self, moment: float, joules: float) -> float:
        """Take a reading in.

        Args:
            moment: Seconds, of any clock that only goes up.
            joules: Energy used so far.

        Returns:
            The duty cycle that it asks for.
        """
        before, self._before = self._before, (moment, joules)
        if before is None:
            return self.controller.duty
        if (seconds := moment - before[0]) > 0:
            now = max(joules - before[1], 0.0) / seconds
            weight = 1.0 - math.exp(-seconds / POWER_WINDOW)
            self.value = now if self.value is None else self.value + weight * (now - self.value)
        if self.value is None:
            return self.controller.duty
        seconds, gain = _gap(before[0], moment), POWER_GAIN / self.limit
        return self.controller.update(self.limit - self.value, seconds, gain=gain, integral_seconds=POWER_INTEGRAL)


def _gap(before: float | None, now: float) -> float:
    return 0.0 if before is None else min(max(now - before, 0.0), LONGEST_GAP)
