"""Smoothing of a noisy curve: a local linear regression, whose window grows with the run.

A moving average lags behind a falling curve, the more the heavier it is. The window here lies around each point, and at
both ends, where it is cut, the fitted line leads on: nothing lags. It is narrow at the beginning, where a loss falls
steeply, and grows with the distance from there.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import mul
from typing import NamedTuple

#: Steps below which a curve is shown as it is.
FEWEST = 30
#: Half a window, as a part of the distance from the first point, and its greatest part of the whole run.
GROWTH, SHARE = 0.4, 1 / 11
#: Steps by which the greatest window grows: the picture of a run that goes on is extended and seldom redrawn.
_LADDER = 1.25
#: Values are clamped to this, positive or negative, so that no sum is infinite.
GREATEST = 1e290


class Point(NamedTuple):
    """The mean of ``weight`` values around a step."""

    step: float
    value: float
    weight: float


def greatest_half_window(steps: float) -> float:
    """Half of the widest window of a run, in steps; it grows in jumps. 0 for a run that is too short."""
    return _LADDER ** math.floor(math.log(steps * SHARE, _LADDER)) if steps >= FEWEST else 0.0


def smooth(points: Sequence[Point], first: float, last: float) -> list[float]:
    """Smoothed values, one for each point.

    Args:
        points: Points by rising step, each with a finite value.
        first: First step of the run.
        last: Last step of the run so far.
    """
    widest = greatest_half_window(last - first + 1)
    if not widest:
        return [point.value for point in points]
    steps = [point.step for point in points]
    weights = [point.weight for point in points]
    values = [min(max(point.value, -GREATEST), GREATEST) for point in points]
    found = []
    for step in steps:
        half = min((step - first) * GROWTH, widest)
        begin, end = bisect_left(steps, step - half), bisect_right(steps, step + half)
        # The window reaches to the next points, whose weight would be nothing.
        half += max(steps[min(end, len(steps) - 1)] - step - half, step - half - steps[max(begin - 1, 0)], 1.0)
        offsets = [other - step for other in steps[begin:end]]
        # The Epanechnikov kernel: the nearer a point, the more it counts.
        kernel = [
            weight * (1.0 - (offset / half) ** 2) for weight, offset in zip(weights[begin:end], offsets, strict=True)
        ]
        found.append(_fit(offsets, values[begin:end], kernel))
    return found


def _fit(offsets: Sequence[float], values: Sequence[float], weights: Sequence[float]) -> float:
    """The value at the offset 0 of the line with the least squares."""
    total = sum(weights)
    weighted = list(map(mul, weights, values))
    mean: float = sum(weighted) / total
    if len(offsets) < 3:
        return mean
    center: float = sum(map(mul, weights, offsets)) / total
    centered = [offset - center for offset in offsets]
    spread: float = sum(map(mul, weights, map(mul, centered, centered)))
    slope: float = sum(map(mul, centered, weighted)) / spread if spread > 0 else 0.0
    return mean - slope * center
