"""Parts of a chart drawn into a frame of cells: axes, lines, marks, legend, cursor. No widgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len

from core.runs.record.series import Bucket, Series
from core.text import one_line
from tui.glyphs import GlyphSet
from tui.widgets.charts import plot_geometry as geometry
from tui.widgets.charts.chart_data import STEPS, ChartData, ChartMark, Curve, Measured, XAxis
from tui.widgets.charts.plot_geometry import DotGrid, Scale

#: A cell of a frame: a character and its component class.
Cell = tuple[str, str]
_BLANK: Cell = (" ", "")
#: Columns between the letters of a curve.
_LETTERS_APART = 24
#: Kinds of marks by ascending importance, with their names in the legend; the most important in a cell is drawn.
KINDS = {
    "going_on": "goes on",
    "resumed": "goes on",
    "checkpoint": "checkpoint",
    "governor": "governor",
    "warning": "warning",
    "paused": "pause",
    "parked": "parked",
    "memory": "memory",
    "rollback": "rollback",
    "error": "error",
    "": "",
}
#: Minimum and maximum columns of a mark's label.
_SHORTEST_LABEL, _LONGEST_LABEL = 7, 32
#: Maximum share of the width for a legend, and what is shorter in a longer one.
_LEGEND_SHARE = 0.8
_SHORTER = {"checkpoint": "saved", "each step": "step", "smoothed": "smooth", "  ": " "}
#: Minimum rows for a legend.
LEGEND_ROWS = 3


@dataclass
class Frame:
    """Rows of cells."""

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

    def is_free(self, x: int, y: int) -> bool:
        """True if a cell is empty."""
        return 0 <= x < self.width and self.cells[y][x][0] in " \u2800"


@dataclass
class Plot:
    """Drawing area of a chart in a frame, between ``left`` and ``right`` columns of margin."""

    frame: Frame
    glyphs: GlyphSet
    left: int
    rows: int
    scale: Scale
    window: Scale
    x_axis: XAxis = STEPS
    right: int = 0
    smooth: Sequence[Bucket] = ()
    """The smoothed curve as drawn."""

    @property
    def end(self) -> int:
        """The column after the last."""
        return self.frame.width - self.right

    @property
    def width(self) -> int:
        """Width of the drawing area in cells."""
        return self.end - self.left

    def column(self, step: float) -> int | None:
        """Column of a step; None outside the window."""
        if not self.window.low <= step <= self.window.high:
            return None
        dots = self.width * self.glyphs.columns
        dot = self.window.dot(step, dots)
        return None if dot is None else self.left + dot // self.glyphs.columns

    def row(self, value: float) -> int | None:
        """Row of a value; None if it is not on the axis."""
        dot = self.scale.dot(value, self.rows * self.glyphs.rows)
        return None if dot is None else self.rows - 1 - dot // self.glyphs.rows

    def axes(self, y_ticks: Sequence[tuple[int, str]], unit: str = "") -> None:
        """Draw both axes with ticks and labels; rows of ticks count from the bottom. The unit is below the labels."""
        glyphs, frame, axis = self.glyphs, self.frame, self.left - 1
        for y in range(self.rows):
            frame.put(axis, y, glyphs.vertical, "axis")
        for row, label in y_ticks:
            frame.put(axis - len(label), self.rows - 1 - row, label, "label")
            frame.put(axis, self.rows - 1 - row, glyphs.tick_left, "axis")
        frame.put(axis - len(unit), self.rows, unit, "label")
        frame.put(axis, self.rows, glyphs.corner + glyphs.horizontal * self.width, "axis")
        self._step_labels()

    def second_axis(self, y_ticks: Sequence[tuple[int, str]], unit: str) -> None:
        """Draw the right axis in the same way."""
        glyphs, frame = self.glyphs, self.frame
        for y in range(self.rows):
            frame.put(self.end, y, glyphs.vertical, "axis")
        for row, label in y_ticks:
            frame.put(self.end, self.rows - 1 - row, glyphs.tick_right, "axis")
            frame.put(self.end + 1, self.rows - 1 - row, label, "label")
        frame.put(self.end, self.rows, glyphs.corner_right, "axis")
        frame.put(self.end + 1, self.rows, unit, "label")

    def _step_labels(self) -> None:
        """Label round steps, and the end of the axis."""
        window, end = self.window, self.end
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

    def series(self, shown: Measured, *, alone: bool) -> None:
        """Draw a series; a noisy series as dim values with the smoothed line in front.

        Beside a second series the values are left out, because three overlapping lines would be unreadable.
        """
        raw, line = (DotGrid(self.width, self.rows, self.glyphs) for _ in range(2))
        if shown.is_smoothed and alone:
            geometry.draw_line(raw, shown.series.bucket(raw.columns, *self._steps), self.scale)
        self.smooth = self._line(shown)
        geometry.draw_line(line, self.smooth, self.scale)
        self._put_dots(raw, self.glyphs.points, "raw")
        self._put_dots(line, self.glyphs.line, "smooth")

    def _put_dots(self, grid: DotGrid, characters: str, style: str) -> None:
        """Draw the dots of a grid, a character for each pattern."""
        for y, bits in enumerate(grid.bits):
            for x, pattern in enumerate(bits):
                if pattern:
                    self.frame.cells[y][self.left + x] = (characters[pattern], style)

    def second(self, shown: Measured, scale: Scale) -> None:
        """Draw the series of the right axis as a dotted line."""
        grid = DotGrid(self.width, self.rows, self.glyphs)
        geometry.draw_line(grid, self._line(shown), scale)
        grid.bits = [[pattern & self.glyphs.sparse for pattern in bits] for bits in grid.bits]
        self._put_dots(grid, self.glyphs.points, "second")

    def _line(self, shown: Measured) -> list[Bucket]:
        width = self.width * self.glyphs.columns
        return (shown.series.smooth_bucket if shown.is_noisy else shown.series.bucket)(width, *self._steps)

    @property
    def _steps(self) -> tuple[int, int]:
        """First and last visible step."""
        return int(self.window.low), int(self.window.high)

    def smoothed_at(self, step: int) -> float | None:
        """The smoothed value nearest to a step, if any."""
        place = self.window.dot(step, self.width * self.glyphs.columns)
        if place is None:
            return None
        return min(self.smooth, key=lambda item: abs(item.x - place)).last if self.smooth else None

    def cursor(self, step: int) -> None:
        """Draw a vertical line through the free cells at a step, and a tick on the axis."""
        x = self.column(step)
        if x is None:
            return
        for y in range(self.rows):
            if self.frame.is_free(x, y):
                self.frame.put(x, y, self.glyphs.bar_tick, "cursor")
        if self.frame.cells[self.rows][x][1] == "axis":
            self.frame.put(x, self.rows, self.glyphs.tick_down, "cursor")

    def readout(self, parts: Sequence[str]) -> None:
        """Draw the readout of the cursor in place of the legend: the parts that fit, in order."""
        line = ""
        for part in parts:
            added = f"{line}  {part}" if line else part
            if cell_len(added) <= self.width and cell_len(added) == len(added):
                line = added
        self.frame.put(self.left, 0, line.ljust(self.width), "readout")

    def curves(self, curves: Sequence[Curve]) -> None:
        """Draw curves over each other, then the letters of all, so that none is hidden."""
        first, last = self._steps
        letters: list[tuple[int, int, Curve]] = []
        for place, curve in enumerate(curves):
            grid = DotGrid(self.width, self.rows, self.glyphs)
            read = curve.series.smooth_bucket if curve.is_smoothed else curve.series.bucket
            buckets = read(grid.columns, first, last)
            geometry.draw_line(grid, buckets, self.scale)
            self._put_dots(grid, self.glyphs.line, f"curve-{curve.color}")
            letters += self._letters(curve, buckets, place * _LETTERS_APART // max(len(curves), 1))
        for x, y, curve in letters:
            self.frame.put(x, y, curve.letter, f"curve-{curve.color}")

    def _letters(self, curve: Curve, buckets: Sequence[Bucket], shift: int) -> list[tuple[int, int, Curve]]:
        """Positions of a curve's letter: at intervals shifted against the other curves, and at its end."""
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
        """Draw letters and names of the curves at the top right; names are shortened or left out to fit."""
        room = self.width - cell_len(before) - 2
        each = room // max(len(curves), 1) - 4
        names = [one_line(curve.name, each) if each >= 6 else "" for curve in curves]
        parts = [(before, "label")] if before else []
        for curve, name in zip(curves, names, strict=True):
            if not len(curve.series):
                name = f"{name} –" if name else "–"
            parts += [(f"{curve.letter} " if name else curve.letter, f"curve-{curve.color}"), (f"{name}  ", "label")]
        self._put_legend(parts)

    def evaluations(self, series: Series, mark: str, style: str) -> None:
        """Draw a mark for each evaluation."""
        for step, value in zip(series.steps, series.values, strict=True):
            x, y = self.column(step), self.row(value)
            if x is not None and y is not None:
                self.frame.put(x, y, mark, style)

    def legend(self, data: ChartData, *, log: bool) -> None:
        """Draw the legend at the top right: the marks and the series, in shorter words or without the marks if need
        be."""
        if data.curves:
            self.curve_names(data.curves, "log axis  " if log else "")
            return
        axis, parts = [("log axis  ", "label")] if log else [], self._series_legend(data)
        # Only the last mark in a cell is visible.
        seen = {(x, y): mark.kind for x, y, mark in self._placed(data.marks)}.values()
        names = {KINDS[kind]: self._glyph(kind) for kind in KINDS if kind in seen and KINDS[kind]}
        marks = [part for name, glyph in names.items() for part in ((f"{glyph} ", "event"), (f"{name}  ", "label"))]
        forms = [form for each in ([*axis, *marks, *parts], [*axis, *parts]) for form in (each, _shortened(each))]
        room = self.width * _LEGEND_SHARE
        fitting = (form for form in forms if sum(len(text) for text, _ in form) <= room)
        self._put_legend(next(fitting, forms[-1]), margin=1)

    def _put_legend(self, parts: Sequence[Cell], margin: int = 0) -> None:
        """Draw texts at the top right; curves do not touch them."""
        x = self.end - margin - sum(len(text) for text, _ in parts)
        if not self.frame.is_free(x - 1, 0):
            self.frame.put(x - 1, 0, " ", "label")
        for text, style in parts:
            self.frame.put(x, 0, text, style)
            x += len(text)

    def _series_legend(self, data: ChartData) -> list[Cell]:
        ascii_only, shown, second = self.glyphs.name == "ascii", data.main, data.second
        line, name = "*" if ascii_only else "━", f"{shown.name} "
        parts = [(name, "label"), (line, "smooth")]
        if shown.is_smoothed and second is None:
            dim = "." if ascii_only else "─"
            before = name if data.measured is not None else ""
            parts = [(f"{before}each step ", "label"), (dim, "raw"), ("  smoothed ", "label"), (line, "smooth")]
        if data.measured is None:
            if len(data.evals):
                parts += [("  eval ", "label"), (self.glyphs.eval_mark, "eval")]
            if len(data.probe):
                parts += [("  probe ", "label"), (self.glyphs.probe_mark, "probe")]
        if second is not None:
            log = ", log" if second.log else ""
            parts += [(f"  {second.name} (right{log}) ", "label"), (".." if ascii_only else "┈┈", "second")]
        return parts

    def _glyph(self, kind: str) -> str:
        return self.glyphs.marks.get(kind, self.glyphs.event_mark)

    def _placed(self, marks: Sequence[ChartMark]) -> list[tuple[int, int, ChartMark]]:
        """Column and row of each mark in sight, the least important first: below the legend, or on the axis."""
        kinds = list(KINDS)
        y = 1 if self.rows >= LEGEND_ROWS else 0
        ranked = sorted(marks, key=lambda mark: kinds.index(mark.kind) if mark.kind in KINDS else 0)
        return [
            (x, self.rows if mark.kind == "checkpoint" else y, mark)
            for mark in ranked
            if (x := self.column(mark.step)) is not None
        ]

    def marks(self, marks: Sequence[ChartMark]) -> None:
        """Draw the marks, with labels if there is room; checkpoints have none."""
        placed = self._placed(marks)
        for x, y, mark in placed:
            self.frame.put(x, y, self._glyph(mark.kind), "event")
        for x, y, mark in reversed(placed):
            free = range(x + 1, self.end)
            room = next((place for place in free if not self.frame.is_free(place, y)), self.end) - x - 3
            text = " " + one_line(mark.label, min(room, _LONGEST_LABEL))
            if mark.kind != "checkpoint" and room >= _SHORTEST_LABEL and cell_len(text) == len(text):
                self.frame.put(x + 1, y, text, "event")


def _shortened(parts: Sequence[Cell]) -> list[Cell]:
    """A legend in shorter words."""
    found = []
    for text, style in parts:
        for word, shorter in _SHORTER.items():
            text = text.replace(word, shorter)
        found.append((text, style))
    return found
