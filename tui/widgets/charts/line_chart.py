"""The loss chart: the loss of each step, a smoothed line, evaluations and events over steps, on the Line API.

A frame that differs little from the one before refreshes only the cells that changed: that keeps the chart
cheap over SSH.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from core.runs.series import SMOOTH_COLUMNS, Bucket, Series
from core.text import one_line
from tui.glyphs import BRAILLE, GlyphSet
from tui.widgets.charts import plot_geometry as geometry
from tui.widgets.charts.plot_geometry import DotGrid, Scale
from tui.widgets.charts.x_axis import STEPS, XAxis

#: A cell of a frame: a character and the component class that colors it.
Cell = tuple[str, str]
_BLANK: Cell = (" ", "")
#: Number of colors of curves.
COLORS = 6
#: Columns between two letters of a curve.
_LETTERS_APART = 24


@dataclass(frozen=True)
class Curve:
    """One of several curves; its letter tells it apart where there are no colors."""

    letter: str
    name: str
    series: Series
    color: int
    """Number of its color, from 1 to :data:`COLORS`."""
    is_smoothed: bool = True
    """Whether it is drawn smoothed; values of evaluations are not."""


@dataclass(frozen=True)
class ChartData:
    """The data of the chart; steps rise, and values that are not finite leave gaps."""

    loss: Series = field(default_factory=Series)
    evals: Series = field(default_factory=Series)
    marks: Sequence[tuple[float, str]] = ()
    """Events: a step and a label each."""
    total_steps: int = 0
    is_over: bool = False
    """Whether the run has ended, so that its axis does not grow any more."""
    probe: Series = field(default_factory=Series)
    """The loss on the general probe."""
    curves: Sequence[Curve] = ()
    """Curves over each other, in front of all else."""
    x_axis: XAxis = STEPS

    @property
    def shown(self) -> list[Series]:
        """All series."""
        return [self.loss, self.evals, self.probe, *(curve.series for curve in self.curves)]

    @property
    def version(self) -> tuple[object, ...]:
        """Changes whenever the picture may: series only grow, or are replaced from a step on."""
        series = [(id(each), len(each), each.last_step, repr(each.last)) for each in self.shown]
        return (*series, tuple(self.marks), self.total_steps, self.is_over, tuple(self.curves), self.x_axis)


@dataclass
class _Frame:
    """A frame of cells, by rows."""

    width: int
    height: int
    cells: list[list[Cell]] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = [[_BLANK] * self.width for _ in range(self.height)]

    def put(self, x: int, y: int, text: str, style: str) -> None:
        """Write single-width text, cut at the edges."""
        if 0 <= y < self.height:
            for offset, character in enumerate(text):
                if 0 <= x + offset < self.width:
                    self.cells[y][x + offset] = (character, style)

    def is_free(self, x: int, y: int, width: int) -> bool:
        """Whether a cell is empty."""
        return x >= 0 and x + width <= self.width and all(cell[0] in " \u2800" for cell in self.cells[y][x : x + width])


class LineChart(Widget):
    """A line chart of the loss over steps."""

    DEFAULT_CSS = """
    LineChart { width: 100%; height: 1fr; min-height: 4; }
    LineChart > .line-chart--smooth { color: $chart-smooth; }
    LineChart > .line-chart--raw { color: $chart-raw; }
    LineChart > .line-chart--eval { color: $chart-eval; text-style: bold; }
    LineChart > .line-chart--probe { color: $chart-event; }
    LineChart > .line-chart--event { color: $chart-event; }
    LineChart > .line-chart--axis { color: $chart-axis; }
    LineChart > .line-chart--label { color: $muted; }
    LineChart > .line-chart--curve-1 { color: $curve-1; }
    LineChart > .line-chart--curve-2 { color: $curve-2; }
    LineChart > .line-chart--curve-3 { color: $curve-3; }
    LineChart > .line-chart--curve-4 { color: $curve-4; }
    LineChart > .line-chart--curve-5 { color: $curve-5; }
    LineChart > .line-chart--curve-6 { color: $curve-6; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "line-chart--smooth",
        "line-chart--raw",
        "line-chart--eval",
        "line-chart--probe",
        "line-chart--event",
        "line-chart--axis",
        "line-chart--label",
        *(f"line-chart--curve-{number}" for number in range(1, COLORS + 1)),
    }

    log_axis: reactive[bool] = reactive(False, init=False)
    """Whether the loss axis is logarithmic."""

    def __init__(self, glyphs: GlyphSet = BRAILLE) -> None:
        super().__init__()
        self.glyphs = glyphs
        self.data = ChartData()
        self._frame: _Frame | None = None
        self._version: tuple[object, ...] = ()
        self._styles: dict[str, Style] = {}

    def show(self, data: ChartData) -> None:
        """Show new data, and refresh only the cells that changed."""
        self.data = data
        before, version = self._frame, data.version
        if before is not None and version == self._version:
            return
        self._version = version
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

    def watch_log_axis(self) -> None:
        """Draw again on the other axis."""
        self._frame = None
        self.refresh()

    def notify_style_update(self) -> None:
        """Drop the colors of the old theme."""
        super().notify_style_update()
        self._styles.clear()

    def render_line(self, y: int) -> Strip:
        """The strip of one row of the frame."""
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

    def _draw(self, width: int, height: int) -> _Frame:
        """A new frame: axes, dots, line, marks, legend."""
        frame = _Frame(width, height)
        if width < 12 or height < 4:
            return frame
        data, plot_rows = self.data, height - 2
        axis = geometry.value_axis(self._bounds(), plot_rows, self.glyphs.rows, self.log_axis)
        labels = geometry.tick_labels([value for _, value in axis.ticks])
        left = max([cell_len(label) for label in labels], default=1) + 1
        plot = _Plot(frame, self.glyphs, left + 1, plot_rows, axis.scale, self._window(), data.x_axis)
        plot.axes([(row, label) for (row, _), label in zip(axis.ticks, labels, strict=True)])
        if not self._bounds():
            return frame
        plot.series(data)
        plot.curves(data.curves)
        plot.evaluations(data.probe, self.glyphs.probe_mark, "probe")
        plot.evaluations(data.evals, self.glyphs.eval_mark, "eval")
        if plot_rows >= 6 and width >= 50:
            plot.legend(data, log=axis.scale.log)
        elif data.curves:
            plot.curve_names(data.curves, "")
        plot.marks(data.marks)
        return frame

    def _bounds(self) -> list[float]:
        """The extremes of all shown values; on a log axis, of the positive ones."""
        found: list[float] = []
        for curve in self.data.curves:
            # What is not drawn needs no room.
            if curve.is_smoothed:
                found += [
                    value for item in curve.series.smooth_bucket(SMOOTH_COLUMNS) for value in (item.low, item.high)
                ]
        if found:
            return [value for value in found if math.isfinite(value)]
        for series in self.data.shown:
            if self.log_axis and (least := series.least_positive()) is not None:
                found.append(least)
            found += series.bounds() or ()
        return [value for value in found if math.isfinite(value)]

    def _window(self) -> Scale:
        shown = [series for series in self.data.shown if len(series)]
        first = min((series.steps[0] for series in shown), default=1)
        last = max((series.steps[-1] for series in shown), default=1)
        return geometry.step_window(first, last, self.data.total_steps, is_over=self.data.is_over)


def _changed(old: Sequence[Cell], new: Sequence[Cell]) -> tuple[int, int]:
    """The first and last column at which two rows differ."""
    columns = [x for x, (before, after) in enumerate(zip(old, new, strict=True)) if before != after]
    return columns[0], columns[-1]


@dataclass
class _Plot:
    """A plot of the parts of a chart into a frame; the plot's own area begins at column ``left``."""

    frame: _Frame
    glyphs: GlyphSet
    left: int
    rows: int
    scale: Scale
    window: Scale
    x_axis: XAxis = STEPS

    @property
    def width(self) -> int:
        """The width of the plot's own area in cells."""
        return self.frame.width - self.left

    def column(self, step: float) -> int | None:
        """The cell column of a step; None outside the window."""
        if not self.window.low <= step <= self.window.high:
            return None
        dots = self.width * self.glyphs.columns
        dot = self.window.dot(step, dots)
        return None if dot is None else self.left + dot // self.glyphs.columns

    def row(self, value: float) -> int | None:
        """The cell row of a value; None where it is not on the axis."""
        dot = self.scale.dot(value, self.rows * self.glyphs.rows)
        return None if dot is None else self.rows - 1 - dot // self.glyphs.rows

    def axes(self, y_ticks: Sequence[tuple[int, str]]) -> None:
        """Both axes with ticks and labels; rows of ticks are counted from the bottom."""
        glyphs, frame, axis = self.glyphs, self.frame, self.left - 1
        for y in range(self.rows):
            frame.put(axis, y, glyphs.vertical, "axis")
        for row, label in y_ticks:
            frame.put(axis - len(label), self.rows - 1 - row, label, "label")
            frame.put(axis, self.rows - 1 - row, glyphs.tick_left, "axis")
        frame.put(axis, self.rows, glyphs.corner + glyphs.horizontal * self.width, "axis")
        self._step_labels()

    def _step_labels(self) -> None:
        """Round steps, and the last one of the axis at its end."""
        window, end = self.window, self.frame.width
        last = self.x_axis.end(window.high)
        self.frame.put(end - 1, self.rows, self.glyphs.tick_down, "axis")
        self.frame.put(end - len(last), self.rows + 1, last, "label")
        taken = 0
        for value, label in self.x_axis.ticks(window.low, window.high, max(self.width // 10, 2)):
            x = self.column(value)
            if x is None:
                continue
            start = max(x - len(label) // 2, 0)
            if taken <= start and start + len(label) < end - len(last) - 1:
                self.frame.put(x, self.rows, self.glyphs.tick_down, "axis")
                self.frame.put(start, self.rows + 1, label, "label")
                taken = start + len(label) + 1

    def series(self, data: ChartData) -> None:
        """The loss of each step as a dim line, and the smoothed line over it: a cell shows one of the two."""
        raw, line = (DotGrid(self.width, self.rows, self.glyphs) for _ in range(2))
        first, last = int(self.window.low), int(self.window.high)
        if data.loss.is_smoothed:
            geometry.draw_line(raw, data.loss.bucket(raw.columns, first, last), self.scale)
        geometry.draw_line(line, data.loss.smooth_bucket(line.columns, first, last), self.scale)
        for y in range(self.rows):
            for x in range(self.width):
                if pattern := line.bits[y][x]:
                    self.frame.cells[y][self.left + x] = (self.glyphs.line[pattern], "smooth")
                elif pattern := raw.bits[y][x]:
                    self.frame.cells[y][self.left + x] = (self.glyphs.points[pattern], "raw")

    def curves(self, curves: Sequence[Curve]) -> None:
        """Several curves: the later ones over the earlier ones, then the letters of all, so that none is hidden."""
        first, last = int(self.window.low), int(self.window.high)
        letters: list[tuple[int, int, Curve]] = []
        for place, curve in enumerate(curves):
            grid = DotGrid(self.width, self.rows, self.glyphs)
            read = curve.series.smooth_bucket if curve.is_smoothed else curve.series.bucket
            buckets = read(grid.columns, first, last)
            geometry.draw_line(grid, buckets, self.scale)
            for y, bits in enumerate(grid.bits):
                for x, pattern in enumerate(bits):
                    if pattern:
                        self.frame.cells[y][self.left + x] = (self.glyphs.line[pattern], f"curve-{curve.color}")
            letters += self._letters(curve, buckets, place * _LETTERS_APART // max(len(curves), 1))
        for x, y, curve in letters:
            self.frame.put(x, y, curve.letter, f"curve-{curve.color}")

    def _letters(self, curve: Curve, buckets: Sequence[Bucket], shift: int) -> list[tuple[int, int, Curve]]:
        """The places of a curve's letter: now and then along it, shifted against the other curves, and at its end."""
        found: dict[int, int] = {}
        for item in buckets:
            dot = self.scale.dot(item.last, self.rows * self.glyphs.rows)
            if dot is not None:
                found[item.x // self.glyphs.columns] = self.rows - 1 - dot // self.glyphs.rows
        wanted = [x for x in found if x % _LETTERS_APART == shift % _LETTERS_APART]
        if not wanted or (found and max(found) - wanted[-1] > _LETTERS_APART // 2):
            wanted += [max(found)] if found else []
        return [(self.left + x, found[x], curve) for x in wanted]

    def curve_names(self, curves: Sequence[Curve], before: str) -> None:
        """The letters and names of curves at the top right; names are shortened to fit, and then left out."""
        room = self.frame.width - self.left - cell_len(before) - 2
        each = room // max(len(curves), 1) - 4
        names = [one_line(curve.name, each) if each >= 6 else "" for curve in curves]
        parts = [(before, "label")] if before else []
        for curve, name in zip(curves, names, strict=True):
            if not len(curve.series):
                name = f"{name} –" if name else "–"
            parts += [(f"{curve.letter} " if name else curve.letter, f"curve-{curve.color}"), (f"{name}  ", "label")]
        x = self.frame.width - sum(len(text) for text, _ in parts)
        for text, style in parts:
            self.frame.put(x, 0, text, style)
            x += len(text)

    def evaluations(self, series: Series, mark: str, style: str) -> None:
        """A mark for each value of an evaluation."""
        for step, value in zip(series.steps, series.values, strict=True):
            x, y = self.column(step), self.row(value)
            if x is not None and y is not None:
                self.frame.put(x, y, mark, style)

    def legend(self, data: ChartData, *, log: bool) -> None:
        """The legend of the marks, at the top right."""
        if data.curves:
            self.curve_names(data.curves, "log axis  " if log else "")
            return
        ascii_only = self.glyphs.name == "ascii"
        line = "*" if ascii_only else "━"
        parts = [("loss ", "label"), (line, "smooth")]
        if data.loss.is_smoothed:
            parts = [
                ("each step ", "label"),
                ("." if ascii_only else "─", "raw"),
                ("  smoothed ", "label"),
                (line, "smooth"),
            ]
        if len(data.evals):
            parts += [("  eval ", "label"), (self.glyphs.eval_mark, "eval")]
        if len(data.probe):
            parts += [("  probe ", "label"), (self.glyphs.probe_mark, "probe")]
        if log:
            parts.insert(0, ("log axis  ", "label"))
        x = self.frame.width - sum(len(text) for text, _ in parts) - 1
        for text, style in parts:
            self.frame.put(x, 0, text, style)
            x += len(text)

    def marks(self, marks: Sequence[tuple[float, str]]) -> None:
        """A mark for each event below the legend, with its label where there is room."""
        y = 1 if self.rows >= 6 else 0
        for step, label in marks:
            x = self.column(step)
            if x is None:
                continue
            self.frame.put(x, y, self.glyphs.event_mark, "event")
            text = " " + one_line(label, 32)
            if cell_len(text) == len(text) and self.frame.is_free(x + 1, y, len(text) + 1):
                self.frame.put(x + 1, y, text, "event")
