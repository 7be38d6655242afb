"""Data of a chart: series, curves, marks, and the axis that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from core.runs.record.series import Series
from core.units import format_number
from tui.widgets.charts.x_axis import STEPS, XAxis


@dataclass(frozen=True)
class Curve:
    """One of several curves; its letter tells it apart where there are no colors."""

    letter: str
    name: str
    series: Series
    color: int
    """Number of its color, from 1 to :data:`tui.widgets.charts.line_chart.COLORS`."""
    is_smoothed: bool = True
    """Whether it is drawn smoothed; values of evaluations are not."""


@dataclass(frozen=True)
class Measured:
    """A series with a name, a unit and a vertical axis of its own."""

    series: Series
    name: str
    unit: str = ""
    is_noisy: bool = False
    """Whether it is drawn smoothed, above its values."""
    log: bool = False
    """Whether a logarithmic axis is wanted."""

    @property
    def is_smoothed(self) -> bool:
        """Whether the curve is noisy, and long enough to be smoothed."""
        return self.is_noisy and self.series.is_smoothed

    def words(self, step: int) -> str:
        """The name with the value at a step, ``power 312 W``; always of the same width."""
        value = self.series.at(step)
        # A loss that is not a number is a fact; a device that was not read has no value.
        number = format_number(None if value is not None and self.unit and math.isnan(value) else value)
        return f"{self.name} " + f"{number} {self.unit}".ljust(7 + len(self.unit))


class ChartMark(NamedTuple):
    """An event at a step."""

    step: float
    label: str
    kind: str = ""
    """As of :class:`core.runs.record.history.Mark`, or ``checkpoint``: on the axis of steps, without labels."""


@dataclass(frozen=True)
class ChartData:
    """The data of the chart; steps rise, and values that are not finite leave gaps."""

    loss: Series = field(default_factory=Series)
    """The loss of each step. The axis of steps is that of the losses, whatever else is shown."""
    evals: Series = field(default_factory=Series)
    marks: Sequence[ChartMark] = ()
    total_steps: int = 0
    is_over: bool = False
    """Whether the run has ended, so that its axis does not grow any more."""
    probe: Series = field(default_factory=Series)
    """The loss on the general probe."""
    curves: Sequence[Curve] = ()
    """Curves over each other, in front of all else."""
    x_axis: XAxis = STEPS
    measured: Measured | None = None
    """What is shown instead of the losses."""
    second: Measured | None = None
    """What is shown over it, with its axis at the right."""
    times: Series = field(default_factory=Series)
    """The Unix time at each step."""

    @property
    def losses(self) -> list[Series]:
        """The series that the axis of steps reaches over."""
        return [self.loss, self.evals, self.probe, *(curve.series for curve in self.curves)]

    @property
    def main(self) -> Measured:
        """The series of the axis at the left."""
        return self.measured or Measured(self.loss, "loss", is_noisy=True)

    @property
    def newest(self) -> int:
        """The newest step; 1 before there is one."""
        return max((series.steps[-1] for series in self.losses if len(series)), default=1)

    @property
    def oldest(self) -> int:
        """The first step; 1 before there is one."""
        return min((series.steps[0] for series in self.losses if len(series)), default=1)

    @property
    def version(self) -> tuple[object, ...]:
        """Changes whenever the picture may: series only grow, or are replaced from a step on."""
        others = [each for each in (self.measured, self.second) if each is not None]
        shown = [*self.losses, *(each.series for each in others)]
        series = [(id(each), len(each), each.last_step, repr(each.last)) for each in shown]
        named = [(each.name, each.unit, each.log) if each else None for each in (self.measured, self.second)]
        return (*series, *named, tuple(self.marks), self.total_steps, self.is_over, tuple(self.curves), self.x_axis)
