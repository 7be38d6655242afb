"""Readout of a chart: the values at its cursor, in words."""

from __future__ import annotations

from core.runs.record.series import Series
from core.text import one_line
from core.units import format_count, format_moment, format_number
from tui.widgets.charts.chart_data import ChartData
from tui.widgets.charts.plot import Plot

#: Seconds of a run from which on a time of day has its date with it.
_DAY = 86_400.0


def readout(data: ChartData, step: int, plot: Plot) -> list[str]:
    """The step, its time of day and the values there, the most wanted first; those keep their widths."""
    width = len(format_count(int(plot.window.high)))
    parts = [f"step {format_count(step):>{width}}", _moment(data.times, step), data.main.words(step)]
    if data.second is not None:
        parts.append(data.second.words(step))
    if data.main.is_smoothed:
        parts.append(f"smoothed {format_number(plot.smoothed_at(step)):<7}")
    if data.measured is None:
        parts += [_evaluation("eval", data.evals, step), _evaluation("probe", data.probe, step)]
    column = plot.column(step)
    labels = dict.fromkeys(one_line(mark.label, 60) for mark in data.marks if plot.column(mark.step) == column)
    return [part for part in (*parts, *labels) if part]


def _moment(times: Series, step: int) -> str:
    """The time of day at a step, with the date where the run has seen more than one; empty where it is not known."""
    if (moment := times.at(step)) is None:
        return ""
    begun, last = times.bounds() or (moment, moment)
    return format_moment(moment, "%b %d %H:%M:%S" if last - begun >= _DAY else "%H:%M:%S", "")


def _evaluation(name: str, series: Series, step: int) -> str:
    """The newest value at a step and the step of that, ``eval 0.455 @30``; empty before the first."""
    place = series.index_at(step)
    return "" if place is None else f"{name} {format_number(series.values[place])} @{format_count(series.steps[place])}"
