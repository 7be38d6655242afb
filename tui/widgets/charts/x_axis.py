"""Horizontal axes of the chart: steps, tokens or time, each with round values in its own units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.units import format_duration
from tui.widgets.charts.plot_geometry import nice_ticks, tick_labels

#: Round distances on an axis of time, in seconds.
_TIMES = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 432_000, 864_000),
)


@dataclass(frozen=True)
class XAxis:
    """A horizontal axis."""

    ticks: Callable[[float, float, int], list[tuple[float, str]]]
    """Places and labels between two ends, at most a number of them."""
    end: Callable[[float], str]
    """The label of the right end, with the unit of the axis."""


def _whole(low: float, high: float, most: int) -> list[tuple[float, str]]:
    values = [value for value in nice_ticks(low, high, most) if value == int(value)]
    return list(zip(values, tick_labels(values), strict=True))


def _tokens(low: float, high: float, most: int) -> list[tuple[float, str]]:
    return [(value, short_tokens(value)) for value in nice_ticks(low, high, most) if value == int(value)]


def _times(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Ticks of an axis in thousandths of a second."""
    span = (high - low) / 1000
    apart = next((each for each in _TIMES if span / each <= most), None)
    if apart is None or most < 1:
        return []
    first = int(low / 1000 / apart) + 1
    count = int(high / 1000 / apart) - first + 1
    return [(each * apart * 1000, short_time(each * apart)) for each in range(first, first + max(count, 0))]


def short_tokens(count: float) -> str:
    """A number of tokens: ``800``, ``20k``, ``1.5M``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count:.0f}"


def short_time(seconds: float) -> str:
    """A round time: ``30s``, ``5m``, ``2h``, ``1h 30m``; ``0.5s`` below ten seconds."""
    if seconds < 10:
        return f"{seconds:g}s"
    return format_duration(seconds).replace(" 00s", "").replace(" 00m", "").replace(" 00h", "")


STEPS = XAxis(_whole, lambda value: f"step {value:.0f}")
TOKENS = XAxis(_tokens, lambda value: f"{short_tokens(value)} tokens")
TIME = XAxis(_times, lambda value: f"{format_duration(value / 1000)} of steps")
