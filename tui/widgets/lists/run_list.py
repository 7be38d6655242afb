"""The list of runs on the Line API: a row each, the least needed columns left out where there is no room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from core.text import one_line
from core.units import exact_number, format_bytes, format_duration, format_fixed, format_moment, format_number
from tui.state import STATE_COLORS, STATE_GLYPHS

if TYPE_CHECKING:
    from core.runs.catalog import RunRow
    from core.runs.detail import RunFigures

_HEADER_ROWS = 1


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    cell: Callable[[RunRow, RunFigures | None, float], str]
    right: bool = False
    priority: int = 0
    """Priority: columns with low numbers get their room first, those with 0 always."""


def _state(row: RunRow, _figures: RunFigures | None, _now: float) -> str:
    return f"{STATE_GLYPHS.get(row.state, '?')} {'refused' if row.refused else row.state}"


def _identity(row: RunRow, _figures: RunFigures | None, _now: float) -> str:
    return one_line(row.run.id, 64)


def _model(row: RunRow, _figures: RunFigures | None, _now: float) -> str:
    return row.model


def _steps(row: RunRow, _figures: RunFigures | None, _now: float) -> str:
    return f"{row.step}/{row.total_steps}" if row.total_steps else str(row.step or "–")


def _loss(row: RunRow, _figures: RunFigures | None, _now: float) -> str:
    return format_number(row.loss)


def _when(row: RunRow, _figures: RunFigures | None, now: float) -> str:
    """The start time: ``today 14:36``, else the date."""
    is_today = format_moment(row.started, "%x") == format_moment(now, "%x")
    return format_moment(row.started, "today %H:%M" if is_today else "%d %b %H:%M")


def _took(_row: RunRow, figures: RunFigures | None, _now: float) -> str:
    """The time of work: a run may have rested for days."""
    return format_duration(figures.working_seconds) if figures is not None else ""


def _eval_loss(_row: RunRow, figures: RunFigures | None, _now: float) -> str:
    return format_number(figures.eval_loss) if figures is not None else ""


def _exact(_row: RunRow, figures: RunFigures | None, _now: float) -> str:
    return format_fixed(figures.exact_match, 2) if figures is not None else ""


def _size(_row: RunRow, figures: RunFigures | None, _now: float) -> str:
    return format_bytes(figures.size) if figures is not None else ""


def _options(row: RunRow, _figures: RunFigures | None, _now: float) -> str:
    """Learning rate, rank and batch size: ``5e-4·16·4``."""
    rate = exact_number(float(f"{row.learning_rate:.3g}")) if row.learning_rate is not None else ""
    return "·".join(part for part in (rate, str(row.rank or ""), str(row.batch_size or "")) if part)


_COLUMNS = (
    _Column("state", 10, _state),
    _Column("run", 28, _identity),
    _Column("model", 34, _model, priority=6),
    _Column("lr·rank·batch", 13, _options, right=True, priority=5),
    _Column("step", 11, _steps, right=True),
    _Column("loss", 7, _loss, right=True, priority=1),
    _Column("eval", 7, _eval_loss, right=True, priority=3),
    _Column("exact", 5, _exact, right=True, priority=3),
    _Column("started", 12, _when, priority=7),
    _Column("took", 7, _took, right=True, priority=2),
    _Column("size", 7, _size, right=True, priority=4),
)


class RunList(ScrollView, can_focus=True):
    """A list of runs with a cursor.

    Args:
        clock: The present, in Unix seconds.
    """

    DEFAULT_CSS = """
    RunList { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; background: $background; }
    RunList > .run-list--header { color: $muted; }
    RunList > .run-list--cursor { background: $selected-background; text-style: bold; }
    RunList > .run-list--ok { color: $ok; }
    RunList > .run-list--near { color: $near; }
    RunList > .run-list--limit { color: $limit; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "run-list--header",
        "run-list--cursor",
        "run-list--ok",
        "run-list--near",
        "run-list--limit",
    }

    @dataclass
    class Chosen(Message):
        """A run has been clicked."""

        row: RunRow

    class Moved(Message):
        """The cursor has moved, or other rows have come into view."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._rows: Sequence[RunRow] = ()
        self._figures: dict[str, RunFigures] = {}
        self._cursor = 0

    @property
    def row_count(self) -> int:
        """Number of rows in the list."""
        return len(self._rows)

    @property
    def page_rows(self) -> int:
        """Number of rows in view."""
        return self.size.height - _HEADER_ROWS

    @property
    def selected(self) -> RunRow | None:
        """The row under the cursor."""
        return self._rows[self._cursor] if self._cursor < len(self._rows) else None

    @property
    def in_view(self) -> Sequence[RunRow]:
        """The rows in view, the one under the cursor first."""
        top = self.scroll_offset.y
        shown = [row for row in self._rows[top : top + max(self.page_rows, 0)] if row is not self.selected]
        return [self.selected, *shown] if self.selected is not None else shown

    @property
    def older(self) -> RunRow | None:
        """The row below the cursor: the run before that one."""
        return self._rows[self._cursor + 1] if self._cursor + 1 < len(self._rows) else None

    def figures_of(self, row: RunRow) -> RunFigures | None:
        """The figures of a run, as far as they are known."""
        return self._figures.get(row.run.id)

    def show_figures(self, figures: Mapping[str, RunFigures]) -> None:
        """Show figures of runs."""
        self._figures.update(figures)
        for index, row in enumerate(self._rows):
            if row.run.id in figures:
                self._refresh_row(index)

    def show(self, rows: Sequence[RunRow]) -> None:
        """Show other rows; the cursor stays on its run where that is still there. Only changed rows are repainted."""
        before, chosen = self._rows, self.selected
        self._rows = rows
        if chosen is not None:
            same = next((i for i, row in enumerate(rows) if row.run.id == chosen.run.id), None)
            self._cursor = same if same is not None else min(self._cursor, max(len(rows) - 1, 0))
        if [row.run.id for row in before] != [row.run.id for row in rows]:
            self.virtual_size = Size(self.size.width, len(rows) + _HEADER_ROWS)
            self.refresh()
            return
        for index, (old, new) in enumerate(zip(before, rows, strict=True)):
            if old != new:
                self._refresh_row(index)

    def move(self, by: int) -> None:
        """Move the cursor within the rows."""
        if not self._rows:
            return
        before = self._cursor
        self.post_message(self.Moved())
        self._cursor = min(max(self._cursor + by, 0), len(self._rows) - 1)
        self._refresh_row(before)
        self._refresh_row(self._cursor)
        self._keep_in_view()

    def _keep_in_view(self) -> None:
        top = self.scroll_offset.y
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, force=True)
        elif self._cursor >= top + self.page_rows:
            self.scroll_to(y=self._cursor - self.page_rows + 1, animate=False, force=True)

    def _refresh_row(self, index: int) -> None:
        y = index - self.scroll_offset.y + _HEADER_ROWS
        if _HEADER_ROWS <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def on_click(self, event: events.Click) -> None:
        """Move the cursor by a click, open by a double click."""
        index = event.y - _HEADER_ROWS + self.scroll_offset.y
        if event.y >= _HEADER_ROWS and 0 <= index < len(self._rows):
            self.move(index - self._cursor)
            if event.chain == 2:
                self.post_message(self.Chosen(self._rows[index]))

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self.virtual_size = Size(self.size.width, len(self._rows) + _HEADER_ROWS)
        self._keep_in_view()
        self.post_message(self.Moved())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Other rows are in view."""
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Moved())

    def _columns(self) -> list[tuple[_Column, int]]:
        """The columns that fit, with their widths; remaining room goes to the run's id."""
        room = self.scrollable_content_region.width - 1
        chosen: set[str] = set()
        used = 0
        for column in sorted(_COLUMNS, key=lambda column: column.priority):
            if column.priority == 0 or used + column.width + 2 <= room:
                chosen.add(column.title)
                used += column.width + 2
        columns = [column for column in _COLUMNS if column.title in chosen]
        spare = max(room - used, 0)
        return [(column, column.width + (min(spare, 12) if column.title == "run" else 0)) for column in columns]

    def render_line(self, y: int) -> Strip:
        """The strip of the header, or of a row."""
        width = self.scrollable_content_region.width
        if y < _HEADER_ROWS:
            style = self.get_component_rich_style("run-list--header")
            cells = [_fit(column.title, size, column.right) for column, size in self._columns()]
            return Strip([Segment("  " + "  ".join(cells), style)]).adjust_cell_length(width, self.rich_style)
        index = y - _HEADER_ROWS + self.scroll_offset.y
        if index >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        row, now = self._rows[index], self._clock()
        figures = self.figures_of(row)
        at_cursor = index == self._cursor
        base: Style = self.get_component_rich_style("run-list--cursor") if at_cursor else self.rich_style
        segments = [Segment("▸ " if at_cursor else "  ", base)]
        for column, size in self._columns():
            style = base
            if column.title == "state" and row.state in STATE_COLORS:
                color = self.get_component_rich_style(f"run-list--{STATE_COLORS[row.state]}").color
                style = base + Style(color=color)
            segments.append(Segment(_fit(column.cell(row, figures, now), size, column.right), style))
            segments.append(Segment("  ", base))
        return Strip(segments).adjust_cell_length(width, base)


def _fit(text: str, width: int, right: bool) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - cell_len(text)) + text if right else set_cell_size(text, width)
