"""Data of a chart: series, curves, marks, and their shared x axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from core.runs.record.series import Series
from core.units import format_duration, format_number
from tui.widgets.charts.plot_geometry import nice_ticks, tick_labels

#: Round distances on an axis of time, in seconds.
_TIMES = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 432_000, 864_000),
)


@dataclass(frozen=True)
class XAxis:
    """An x axis."""

    ticks: Callable[[float, float, int], list[tuple[float, str]]]
    """Positions and labels between two ends, up to a maximum number."""
    end: Callable[[float], str]
    """The label of the right end, with the unit of the axis."""


def _whole(low: float, high: float, most: int) -> list[tuple[float, str]]:
    values = [value for value in nice_ticks(low, high, most) if value == int(value)]
    return list(zip(values, tick_labels(values), strict=True))


def _tokens(low: float, high: float, most: int) -> list[tuple[float, str]]:
    return [(value, short_tokens(value)) for value in nice_ticks(low, high, most) if value == int(value)]


def _times(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Ticks of an axis in milliseconds."""
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


@dataclass(frozen=True)
class Curve:
    """A curve among others; its letter identifies it without color."""

    letter: str
    name: str
    series: Series
    color: int
    """Number of its color, from 1 to 6."""
    is_smoothed: bool = True
    """Draw the curve smoothed; off for evaluations."""


@dataclass(frozen=True)
class Measured:
    """A series with its name, unit and y axis."""

    series: Series
    name: str
    unit: str = ""
    is_noisy: bool = False
    """Draw a smoothed line over the values."""
    log: bool = False
    """Use a logarithmic axis."""

    @property
    def is_smoothed(self) -> bool:
        """True for a noisy curve that is long enough to smooth."""
        return self.is_noisy and self.series.is_smoothed

    def words(self, step: int) -> str:
        """Name and value at a step, as ``power 312 W``; the width is constant."""
        value = self.series.at(step)
        # A NaN loss is real; NaN from a meter means that it was not read.
        number = format_number(None if value is not None and self.unit and math.isnan(value) else value)
        return f"{self.name} " + f"{number} {self.unit}".ljust(7 + len(self.unit))


class ChartMark(NamedTuple):
    """An event at a step."""

    step: float
    label: str
    kind: str = ""
    """As in :class:`core.runs.record.history.Mark`, or ``checkpoint``, which is drawn on the axis without a label."""


@dataclass(frozen=True)
class ChartData:
    """Data of a chart; steps ascend, and values that are not finite leave gaps."""

    loss: Series = field(default_factory=Series)
    """Loss of each step. The losses define the axis of steps even if other series are shown."""
    evals: Series = field(default_factory=Series)
    marks: Sequence[ChartMark] = ()
    total_steps: int = 0
    is_over: bool = False
    """True if the run has ended, so that its axis no longer grows."""
    probe: Series = field(default_factory=Series)
    """The loss on the general probe."""
    curves: Sequence[Curve] = ()
    """Overlaid curves, in front of everything else."""
    x_axis: XAxis = STEPS
    measured: Measured | None = None
    """A series to show instead of the losses."""
    second: Measured | None = None
    """A second series, with its axis on the right."""
    times: Series = field(default_factory=Series)
    """The Unix time at each step."""

    @property
    def losses(self) -> list[Series]:
        """The series that define the axis of steps."""
        return [self.loss, self.evals, self.probe, *(curve.series for curve in self.curves)]

    @property
    def main(self) -> Measured:
        """The series of the left axis."""
        return self.measured or Measured(self.loss, "loss", is_noisy=True)

    @property
    def newest(self) -> int:
        """The newest step; 1 before the first."""
        return max((series.steps[-1] for series in self.losses if len(series)), default=1)

    @property
    def oldest(self) -> int:
        """The first step; 1 before there is any."""
        return min((series.steps[0] for series in self.losses if len(series)), default=1)

    @property
    def version(self) -> tuple[object, ...]:
        """A value that changes whenever the chart may: series only grow, or are replaced from a step on."""
        others = [each for each in (self.measured, self.second) if each is not None]
        shown = [*self.losses, *(each.series for each in others)]
        series = [(id(each), len(each), each.last_step, repr(each.last)) for each in shown]
        named = [(each.name, each.unit, each.log) if each else None for each in (self.measured, self.second)]
        return (*series, *named, tuple(self.marks), self.total_steps, self.is_over, tuple(self.curves), self.x_axis)
