"""A card as a first-order thermal model, the reference of the governor's tests."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field


@dataclass
class CardModel:
    """A card, its cooler and the room: ``T' = (ambient + resistance * power - T) / (resistance * capacity)``."""

    resistance: float = 0.17
    """Of the cooler, °C per watt."""
    tau: float = 80.0
    """Its time constant as built, in seconds."""
    ambient: float = 24.0
    busy_w: float = 350.0
    idle_w: float = 25.0
    noise: float = 0.4
    """Standard deviation of readings, °C."""
    delay: float = 2.0
    """Age of readings in seconds."""
    seed: int = 1
    temperature: float = field(init=False)
    joules: float = field(init=False, default=0.0)
    power: float = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._capacity = self.tau / self.resistance
        self.power = self.idle_w
        self.temperature = self.settled(0.0)
        self._past: deque[tuple[float, float]] = deque([(0.0, self.temperature)])
        self.moment = 0.0

    def settled(self, duty: float) -> float:
        """Where the temperature comes to rest at a duty cycle."""
        return self.ambient + self.resistance * self._power_at(duty)

    def _power_at(self, duty: float) -> float:
        return self.idle_w + duty * (self.busy_w - self.idle_w)

    def duty_for(self, temperature: float) -> float:
        """The duty cycle at which a temperature is held."""
        watts = (temperature - self.ambient) / self.resistance
        return min(max((watts - self.idle_w) / (self.busy_w - self.idle_w), 0.0), 1.0)

    def run(self, seconds: float, duty: float, *, step: float = 0.25) -> None:
        """Let time go by."""
        self.power = self._power_at(duty)
        left = seconds
        while left > 1e-9:
            part = min(step, left)
            flow = self.power - (self.temperature - self.ambient) / self.resistance
            self.temperature += part * flow / self._capacity
            self.joules += part * self.power
            self.moment += part
            left -= part
        self._past.append((self.moment, self.temperature))
        while len(self._past) > 1 and self._past[1][0] <= self.moment - self.delay:
            self._past.popleft()

    def reading(self) -> float:
        """The temperature as the driver reports it: late, noisy, in whole degrees."""
        return float(round(self._past[0][1] + self._random.gauss(0.0, self.noise)))
