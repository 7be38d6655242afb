"""Line chart of a run on Textual's Line API: the choice of one or two curves, evaluations and events over steps.

Only changed cells are refreshed, which keeps the chart cheap over SSH.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from core.runs.record.series import CURVES, SMOOTH_COLUMNS, Metric, Series
from core.text import one_line
from core.units import format_count, format_moment, format_number
from tui.glyphs import BRAILLE, GlyphSet
from tui.state import RunView
from tui.widgets.charts import plot_geometry as geometry
from tui.widgets.charts.chart_data import ChartData, ChartMark, Measured
from tui.widgets.charts.plot import LEGEND_ROWS, Cell, Frame, Plot
from tui.widgets.charts.plot_geometry import Scale, ValueAxis
from tui.widgets.strips import component_classes, style_of

if TYPE_CHECKING:
    from core.runs.record.history import RunHistory


#: Minimum number of steps shown.
FEWEST = 8.0
#: A window that follows the newest step moves by this fraction of its span, so that it is seldom redrawn.
JUMPS = 8
#: Fraction of the window moved by a pan.
PAN = 1 / 4


@dataclass(frozen=True)
class Zoom:
    """Window on the axis of steps; by default, the whole axis."""

    span: float | None = None
    """Steps between both ends; None for all."""
    end: float | None = None
    """The step at the right end; None to follow the newest step."""

    def window(self, whole: Scale, newest: float) -> Scale:
        """The visible part of the axis.

        Args:
            whole: The whole axis; its ends are whole numbers.
            newest: The newest step.
        """
        if self.span is None or self.span >= whole.high - whole.low:
            return whole
        jump = max(round(self.span / JUMPS), 1)
        end = math.ceil(newest / jump) * float(jump) if self.end is None else self.end
        low = min(max(end - self.span, whole.low), whole.high - self.span)
        return Scale(low, low + self.span)

    def scaled(self, factor: float, whole: Scale, newest: float, around: float | None = None) -> Zoom:
        """Scale the span by ``factor``, with ``around``, or else the right end, staying in place."""
        now = self.window(whole, newest)
        most = whole.high - whole.low
        span = max(float(round((now.high - now.low) * factor)), FEWEST)
        if span >= most:
            return Zoom()
        if around is None:
            return Zoom(span, self.end)
        share = (min(max(around, now.low), now.high) - now.low) / (now.high - now.low)
        low = min(max(float(round(around - share * span)), whole.low), whole.high - span)
        return Zoom(span, low + span)

    def panned(self, by: int, whole: Scale, newest: float) -> Zoom:
        """Pan by a quarter of the span, forward (``by`` 1) or back (-1). At the newest step, follow it again."""
        now = self.window(whole, newest)
        if self.span is None or now == whole:
            return self
        end = now.high + by * max(round(self.span * PAN), 1)
        end = min(max(end, whole.low + self.span), whole.high)
        following = Zoom(self.span)
        return following if by > 0 and end >= following.window(whole, newest).high else Zoom(self.span, end)

    def holding(self, step: float, whole: Scale, newest: float) -> Zoom:
        """Move the window as little as possible to include a step."""
        now = self.window(whole, newest)
        if self.span is None or now.low <= step <= now.high:
            return self
        return Zoom(self.span, step + self.span if step < now.low else step)


#: Seconds of a run from which times include the date.
_DAY = 86_400.0


def readout(data: ChartData, step: int, plot: Plot) -> list[str]:
    """Step, time of day and values at the cursor, the most important first; their widths are constant."""
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
    """The time of day at a step, with the date in runs of a day or longer; empty if unknown."""
    if (moment := times.at(step)) is None:
        return ""
    begun, last = times.bounds() or (moment, moment)
    return format_moment(moment, "%b %d %H:%M:%S" if last - begun >= _DAY else "%H:%M:%S", "")


def _evaluation(name: str, series: Series, step: int) -> str:
    """The newest evaluation at a step, as ``eval 0.455 @30``; empty before the first."""
    place = series.index_at(step)
    return "" if place is None else f"{name} {format_number(series.values[place])} @{format_count(series.steps[place])}"


#: Zoom factor of a key press.
ZOOM_STEP = 2.0
#: Minimum range of a linear axis, as a fraction of its values: neither noise nor the first steps fill it.
_LEAST_RANGE = 0.02
#: Columns of an axis's labels, ``12.125``, so that the chart stays where it is as they change.
_LABEL_WIDTH = 6


class LineChart(Widget):
    """A line chart over steps, with zoom and cursor."""

    DEFAULT_CSS = style_of("LineChart")
    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(DEFAULT_CSS)

    log_axis: reactive[bool] = reactive(False, init=False)
    """Use a logarithmic left axis."""

    def __init__(self, glyphs: GlyphSet = BRAILLE) -> None:
        super().__init__()
        self.glyphs = glyphs
        self.data = ChartData()
        self.zoom = Zoom()
        """The visible part of the axis."""
        self.cursor: int | None = None
        """The step at the cursor; None for no cursor."""
        self._frame: Frame | None = None
        self._version: tuple[object, ...] = ()
        self._styles: dict[str, Style] = {}
        #: Columns outside the plot in the newest frame.
        self._margin = 0

    def show(self, data: ChartData) -> None:
        """Show new data, and refresh only the cells that changed."""
        self.data = data
        before, version = self._frame, data.version
        if before is not None and version == self._version:
            return
        self._version = version
        self._redraw()

    def _redraw(self) -> None:
        """Draw again, and refresh only the cells that changed."""
        before = self._frame
        if before is None or (before.width, before.height) != (self.size.width, self.size.height):
            self._frame = None
            self.refresh()
            return
        self._frame = after = self._draw(before.width, before.height)
        regions = [
            Region(first, y, last - first + 1, 1)
            for y, (old, new) in enumerate(zip(before.cells, after.cells, strict=True))
            if old != new
            for first, last in [_changed(old, new)]
        ]
        if regions:
            self.refresh(*regions)

    def reset(self) -> None:
        """Show all steps, without a cursor."""
        self.zoom, self.cursor = Zoom(), None
        self._redraw()

    def show_all(self) -> None:
        """Show all steps; the cursor stays."""
        self.zoom = Zoom()
        self._redraw()

    def zoom_by(self, direction: int) -> None:
        """Zoom in (``direction`` 1) or out (-1) by a factor of two, around the cursor or else the newest step."""
        factor = ZOOM_STEP**-direction
        self.zoom = self.zoom.scaled(factor, self._whole, self.data.newest, self.cursor)
        self._redraw()

    def pan(self, by: int) -> None:
        """Show later (``by`` 1) or earlier (-1) steps. The cursor stays in sight."""
        self.zoom = self.zoom.panned(by, self._whole, self.data.newest)
        if self.cursor is not None:
            window = self._window
            self.cursor = self._done(round(min(max(self.cursor, window.low), window.high)))
        self._redraw()

    def move_cursor(self, by: int) -> None:
        """Move the cursor by a column, or at least a step; at first, show it at the newest step in sight."""
        window = self._window
        if self.cursor is None:
            self.cursor = self._done(int(window.high))
        else:
            columns = max(self.size.width - self._margin, 1)
            self.cursor = self._done(self.cursor + by * max(round((window.high - window.low) / columns), 1))
        self.zoom = self.zoom.holding(self.cursor, self._whole, self.data.newest)
        self._redraw()

    def drop_cursor(self) -> None:
        """Remove the cursor."""
        self.cursor = None
        self._redraw()

    def _done(self, step: int) -> int:
        """The nearest finished step."""
        return min(max(step, self.data.oldest), self.data.newest)

    def watch_log_axis(self) -> None:
        """Redraw on the other axis."""
        self._redraw()

    def notify_style_update(self) -> None:
        """Drop the colors of the old theme."""
        super().notify_style_update()
        self._styles.clear()

    def render_line(self, y: int) -> Strip:
        """A row of the frame."""
        width, height = self.size
        if self._frame is None or (self._frame.width, self._frame.height) != (width, height):
            self._frame = self._draw(width, height)
        if y >= height:
            return Strip.blank(width, self.rich_style)
        segments: list[Segment] = []
        text, current = "", ""
        for character, style in self._frame.cells[y]:
            if style != current and text:
                segments.append(Segment(text, self._style(current)))
                text = ""
            text, current = text + character, style
        segments.append(Segment(text, self._style(current)))
        return Strip(segments, width)

    def _style(self, name: str) -> Style:
        if name not in self._styles:
            self._styles[name] = self.get_component_rich_style(f"line-chart--{name}") if name else self.rich_style
        return self._styles[name]

    def _draw(self, width: int, height: int) -> Frame:
        """Draw a new frame: axes, dots, line, marks, and legend or readout."""
        frame = Frame(width, height)
        if width < 12 or height < 4:
            return frame
        data, plot_rows = self.data, height - 2
        bounds, window = self._bounds(), self._window
        second = self._measured_bounds(data.second, log=data.second.log) if data.second is not None else []
        axis = geometry.value_axis(bounds, plot_rows, self.glyphs.rows, self.log_axis)
        other = geometry.value_axis(second, plot_rows, self.glyphs.rows, data.second is not None and data.second.log)
        labels, others = _labels(axis), _labels(other) if second else []
        left, right = _width(labels, data.main.unit), 0
        if data.second is not None and second:
            right = _width(others, data.second.unit) + 1
        if width - left - right < 10:
            right = 0
        self._margin = left + 1 + right
        plot = Plot(frame, self.glyphs, left + 1, plot_rows, axis.scale, window, data.x_axis, right)
        plot.axes(labels, data.main.unit)
        if data.second is not None and right:
            plot.second_axis(others, data.second.unit)
            plot.second(data.second, other.scale)
        if bounds:
            self._draw_values(plot, axis)
        return frame

    def _draw_values(self, plot: Plot, axis: ValueAxis) -> None:
        data = self.data
        plot.series(data.main, alone=not plot.right)
        plot.curves(data.curves)
        if data.measured is None:
            plot.evaluations(data.probe, self.glyphs.probe_mark, "probe")
            plot.evaluations(data.evals, self.glyphs.eval_mark, "eval")
        plot.marks(data.marks)
        if self.cursor is not None:
            step = self._done(self.cursor)
            plot.cursor(step)
            plot.readout(readout(data, step, plot))
        elif plot.rows >= LEGEND_ROWS and plot.frame.width >= 50:
            plot.legend(data, log=axis.scale.log)
        elif data.curves:
            plot.curve_names(data.curves, "")

    def _bounds(self) -> list[float]:
        """Extremes of all values in sight; on a log axis, of the positive values."""
        found: list[float] = []
        for curve in self.data.curves:
            # Only the smoothed line is drawn.
            if curve.is_smoothed:
                found += [
                    value for item in curve.series.smooth_bucket(SMOOTH_COLUMNS) for value in (item.low, item.high)
                ]
        if not found and self.data.measured is not None:
            return self._measured_bounds(self.data.measured, log=self.log_axis)
        if not found:
            found = [value for each in self.data.losses for value in self._extremes(each, log=self.log_axis)]
        return _widened([value for value in found if math.isfinite(value)], log=self.log_axis)

    def _measured_bounds(self, shown: Measured, *, log: bool) -> list[float]:
        """Extremes of a curve in sight."""
        return _widened(self._extremes(shown.series, log=log), log=log)

    def _extremes(self, series: Series, *, log: bool) -> list[float]:
        """Extremes of the values in sight and, on a log axis, the smallest positive value."""
        shown: tuple[int | None, int | None] = (None, None)
        if self.zoom.span is not None:
            shown = int(self._window.low), int(self._window.high)
        least = series.least_positive(*shown) if log else None
        return [*(() if least is None else (least,)), *(series.bounds(*shown) or ())]

    @property
    def _window(self) -> Scale:
        """The visible steps."""
        return self.zoom.window(self._whole, self.data.newest)

    @property
    def _whole(self) -> Scale:
        data = self.data
        return geometry.step_window(data.oldest, data.newest, data.total_steps, is_over=data.is_over)


def _labels(axis: ValueAxis) -> list[tuple[int, str]]:
    """Row and label of each tick."""
    words = geometry.tick_labels([value for _, value in axis.ticks])
    return [(row, label) for (row, _), label in zip(axis.ticks, words, strict=True)]


def _widened(found: list[float], *, log: bool) -> list[float]:
    """Extremes with the minimum range of a linear axis between them."""
    least = max(map(abs, found), default=0.0) * _LEAST_RANGE
    if not found or log or max(found) - min(found) >= least:
        return found
    middle = (max(found) + min(found)) / 2
    return [middle - least / 2, middle + least / 2]


def _width(labels: Sequence[tuple[int, str]], unit: str) -> int:
    """Columns of an axis's labels and unit."""
    return max([_LABEL_WIDTH, *(cell_len(text) for text in (*(label for _, label in labels), unit))]) + 1


def _changed(old: Sequence[Cell], new: Sequence[Cell]) -> tuple[int, int]:
    """First and last column where two rows differ."""
    columns = [x for x, (before, after) in enumerate(zip(old, new, strict=True)) if before != after]
    return columns[0], columns[-1]


_LOSS = CURVES["loss"]


class RunChart:
    """The choice of curves, kept from run to run."""

    def __init__(self) -> None:
        self._main, self._second = _LOSS.name, ""
        self._logarithmic: set[str] = set()

    def main(self, history: RunHistory) -> Metric:
        """The curve of the left axis: the chosen curve, or the loss if the run does not have it."""
        return CURVES[self._main] if self._main in curves_of(history) else _LOSS

    def second(self, history: RunHistory) -> Metric | None:
        """The curve of the right axis, if any."""
        is_there = self._second in curves_of(history) and self._second != self.main(history).name
        return CURVES[self._second] if is_there else None

    def turn(self, history: RunHistory, by: int) -> None:
        """Choose the next or previous curve of the run."""
        self._main = _next(curves_of(history), self.main(history).name, by)

    def turn_second(self, history: RunHistory, by: int) -> None:
        """Choose the next or previous second curve; no curve comes between the last and the first."""
        main, second = self.main(history).name, self.second(history)
        others = ["", *(name for name in curves_of(history) if name != main)]
        self._second = _next(others, second.name if second is not None else "", by)

    def is_logarithmic(self, metric: Metric) -> bool:
        """True if the curve's axis is logarithmic."""
        return metric.name in self._logarithmic

    def toggle_log(self, history: RunHistory) -> None:
        """Toggle the left axis between linear and logarithmic; each curve keeps its setting."""
        metric = self.main(history)
        if metric.has_log_axis:
            self._logarithmic ^= {metric.name}

    def data(self, view: RunView) -> ChartData:
        """Chart data of a run."""
        history = view.history
        marks = chart_marks(history)
        if not view.is_live and view.state.state != "finished":
            marks.append(ChartMark(view.step, view.state.state))
        main, second = self.main(history), self.second(history)
        return ChartData(
            history.loss,
            history.eval_loss,
            marks,
            view.state.total_steps,
            is_over=not view.is_live,
            probe=history.probe_loss,
            measured=self._measured(history, main) if main is not _LOSS else None,
            second=self._measured(history, second) if second is not None else None,
            times=history.times,
        )

    def _measured(self, history: RunHistory, metric: Metric) -> Measured:
        log = self.is_logarithmic(metric)
        return Measured(metric.read(history), name_of(metric, history), metric.unit, metric.is_noisy, log)


def curves_of(history: RunHistory) -> list[str]:
    """Names of the curves of a run."""
    return [name for name, metric in CURVES.items() if metric.read(history).bounds() is not None]


def name_of(metric: Metric, history: RunHistory) -> str:
    """The name of a curve in the chart: the losses share a name and differ by their marks; a CPU has RAM."""
    if metric is _LOSS:
        return "loss"
    is_cpu = bool(history.devices) and history.devices[0].kind == "cpu"
    return "RAM" if metric.name == "memory" and is_cpu else metric.label


def chart_marks(history: RunHistory) -> list[ChartMark]:
    """Events at the steps of a run, including checkpoints."""
    marks = [ChartMark(mark.step, mark.text, mark.kind) for mark in history.marks]
    return marks + [ChartMark(each.step, f"checkpoint step-{each.step}", "checkpoint") for each in history.checkpoints]


def _next(names: Sequence[str], present: str, by: int) -> str:
    if not names:
        return present
    return names[(names.index(present) + by) % len(names)] if present in names else names[0]
