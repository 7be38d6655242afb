"""Curve of a run over its duty cycle: tokens a second and watts, by what was measured at some."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """What was measured at one duty cycle."""

    duty: float
    tokens_per_second: float
    watts: float | None
    """None where the device does not tell its power."""


class Curve:
    """Speed and power by the duty cycle, straight between what was measured.

    Args:
        points: At least one.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = tuple(sorted(points, key=lambda point: point.duty))
        self.has_power = all(point.watts is not None for point in self.points)

    def tokens_per_second(self, duty: float) -> float:
        """Speed at a duty cycle; none without work."""
        places = [(0.0, 0.0), *((point.duty, point.tokens_per_second) for point in self.points)]
        return max(_straight(places, duty), 0.0)

    def watts(self, duty: float) -> float:
        """Power at a duty cycle; 0 where it is not known."""
        if not self.has_power:
            return 0.0
        places = [(point.duty, point.watts or 0.0) for point in self.points]
        # A single point says nothing of the power at rest.
        return max(_straight(places if len(places) > 1 else [(0.0, 0.0), *places], duty), 0.0)

    def most_duty(self, watts: float, floor: float) -> float:
        """The largest duty cycle whose power is within a limit, by hundredths; 0 where none from the floor on is."""
        if not self.has_power:
            return 1.0
        within = [step / 100 for step in range(math.ceil(floor * 100), 101) if self.watts(step / 100) <= watts]
        return max(within, default=0.0)


def _straight(places: Sequence[tuple[float, float]], at: float) -> float:
    """Linear interpolation; beyond the ends, the line of the two next places goes on."""
    above = min(max(bisect_left([x for x, _ in places], at), 1), len(places) - 1)
    (x0, y0), (x1, y1) = places[above - 1], places[above]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
