"""How fast a card gets warmer: what the gain of a temperature's controller follows from.

A card that is worked all the time warms, from rest, by so many degrees a second: its power by its heat capacity. That
rate and the delay of the readings are all that a controller has to know (SIMC: Skogestad, J. Process Control 13, 2003);
how warm the room is and how well the fan cools are for its integral.
"""

from __future__ import annotations

from collections import deque

#: Readings that a slope is taken over.
SLOPE_READINGS = 8
#: Slopes that are compared: the newest ones.
COMPARED = 60
#: The difference of two duty cycles from which on the difference of their slopes tells something.
LEAST_CONTRAST = 0.3
#: The rate before anything is known, °C a second.
FIRST_RATE = 0.5


class HeatingRate:
    """Degrees a second that full duty warms the card by, compared with none; the greatest that was seen.

    From the beginning, when a card at rest is put to work, and from then on by what slower work changes. A rate that is
    too low would make the controller swing; swinging shows the rate.
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
        count = len(self._readings)
        if count < SLOPE_READINGS:
            return None
        middle = sum(moment for moment, _ in self._readings) / count
        mean = sum(value for _, value in self._readings) / count
        spread = sum((moment - middle) ** 2 for moment, _ in self._readings)
        if spread <= 0:
            return None
        return sum((moment - middle) * (value - mean) for moment, value in self._readings) / spread
